// SPDX-License-Identifier: GPL-2.0

//! What the shrinker of Binder's buffer pages says it could free.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const DEBUGFS: &str = "/sys/kernel/debug/shrinker";

/// Idle pages by cgroup.
#[derive(Clone, Default, PartialEq)]
pub struct Counts(BTreeMap<u64, u64>);

impl Counts {
    pub fn of(&self, inode: u64) -> u64 {
        self.0.get(&inode).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// The pages of all cgroups but these.
    pub fn elsewhere(&self, inodes: &[u64]) -> u64 {
        self.total() - inodes.iter().map(|&inode| self.of(inode)).sum::<u64>()
    }

    /// The cgroups for which the two differ.
    pub fn differences(&self, other: &Self) -> BTreeSet<u64> {
        let all = self.0.keys().chain(other.0.keys()).copied();
        all.filter(|&inode| self.of(inode) != other.of(inode))
            .collect()
    }

    /// Reads lines of a cgroup's inode number and a count for each memory node.
    fn parse(text: &str) -> Result<Self> {
        let parse_line = |line: &str| -> Result<(u64, u64)> {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            let inode = numbers.next().context("empty line")??;
            Ok((inode, numbers.sum::<Result<u64, _>>()?))
        };
        let lines = text
            .lines()
            .map(|line| parse_line(line).with_context(|| line.to_owned()));
        Ok(Self(lines.collect::<Result<_>>()?))
    }
}

/// The debug file of the shrinker.
#[derive(Clone)]
pub struct Shrinker(PathBuf);

impl Shrinker {
    /// Finds it by name: the number behind the name differs from boot to boot. The file system
    /// binder has a shrinker of its own, for its superblock; that isn't meant.
    pub fn find() -> Result<Self> {
        let entries = fs::read_dir(DEBUGFS)
            .with_context(|| format!("{DEBUGFS} (debugfs, CONFIG_SHRINKER_DEBUG)"))?;
        for entry in entries {
            let entry = entry?;
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with("android-binder-")
            {
                return Ok(Self(entry.path().join("count")));
            }
        }
        anyhow::bail!("no android-binder shrinker in {DEBUGFS}")
    }

    pub fn counts(&self) -> Result<Counts> {
        let path: &Path = &self.0;
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Counts::parse(&text).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_nodes_are_added() {
        let counts = Counts::parse("1 5 0\n42 7 3\n").expect("well-formed");
        assert_eq!((counts.of(1), counts.of(42), counts.of(2)), (5, 10, 0));
        assert_eq!(counts.total(), 15);
    }

    #[test]
    fn differences_on_either_side() {
        let parse = |text| Counts::parse(text).expect("well-formed");
        let differences = parse("1 5\n2 6\n3 7\n").differences(&parse("2 6\n3 8\n4 9\n"));
        assert_eq!(differences, BTreeSet::from([1, 3, 4]));
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(Counts::parse("1 x\n").is_err());
    }
}

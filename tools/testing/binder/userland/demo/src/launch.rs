// SPDX-License-Identifier: GPL-2.0

//! Processes of the demo: started in a cgroup, spoken to by lines, gone with the director.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use anyhow::{Context, Result};
use rustix::process::{set_parent_process_death_signal, Signal};

use crate::{cgroup::Cgroup, stage::PATIENCE, LaunchArgs};

/// What the child does before it becomes the program: enter its cgroup, so that
/// all of the program's memory is charged there from its first page on, and make sure to die with
/// the director, however that ends.
pub fn become_program(args: &LaunchArgs) -> Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    if let Some(cgroup) = &args.cgroup {
        let procs = cgroup.join("cgroup.procs");
        std::fs::write(&procs, "0").with_context(|| procs.display().to_string())?;
    }
    let (program, rest) = args.command.split_first().context("no program")?;
    Err(Command::new(program).args(rest).exec()).with_context(|| program.clone())
}

/// A running process.
pub struct Actor {
    pub name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Actor {
    /// Starts `command` in `cgroup`; its complaints go to `log`.
    pub fn start(
        name: &str,
        cgroup: Option<&Cgroup>,
        command: &[&str],
        log: &Path,
    ) -> Result<Self> {
        let start = || -> Result<Self> {
            let myself = std::env::current_exe().context("own path")?;
            let log = File::options().create(true).append(true).open(log)?;
            let mut launcher = Command::new(myself);
            launcher.arg("launch");
            if let Some(cgroup) = cgroup {
                launcher.arg("--cgroup").arg(cgroup.path());
            }
            let mut child = launcher
                .arg("--")
                .args(command)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                .spawn()?;
            let stdout = child.stdout.take().context("no stdout")?;
            let (sender, lines) = mpsc::channel();
            // Ends with the process. A thread, because a pipe can't be read with a time limit.
            thread::spawn(move || {
                let lines = BufReader::new(stdout).lines().map_while(Result::ok);
                lines.map(|line| sender.send(line)).all(|sent| sent.is_ok())
            });
            Ok(Self {
                name: name.to_owned(),
                child,
                lines,
            })
        };
        start().with_context(|| format!("starting {name}"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} doesn't listen", self.name))
    }

    /// The next line that the process prints.
    pub fn hear(&self) -> Result<String> {
        self.lines
            .recv_timeout(PATIENCE)
            .with_context(|| format!("{} is silent", self.name))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Both fail only if the process has gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

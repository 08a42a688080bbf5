// SPDX-License-Identifier: GPL-2.0

//! Which lines of two texts differ.

/// A line of one text, of the other, or one of each where they differ.
pub type Pair<'a> = (Option<&'a str>, Option<&'a str>);

/// What a line is about: its words up to the first one with a digit.
pub fn about(line: &str) -> &str {
    let word = |at: usize| line[..at].rfind(' ').map_or(0, |space| space + 1);
    line.find(|c: char| c.is_ascii_digit())
        .map_or(line, |digit| &line[..word(digit)])
}

/// How well two lines go together.
fn fit(one: &str, other: &str) -> usize {
    match one == other {
        true => 3,
        false if about(one) == about(other) => 1,
        false => 0,
    }
}

/// The lines that differ, in their order, those together between which there is none that is the same. Of all ways
/// to lay the texts side by side, it is one with most lines that are the same or at least about the same.
pub fn differing<'a>(ones: &'a [String], others: &'a [String]) -> Vec<Vec<Pair<'a>>> {
    let width = others.len() + 1;
    // What can be had from here on.
    let mut best = vec![0; (ones.len() + 1) * width];
    for (i, one) in ones.iter().enumerate().rev() {
        for (j, other) in others.iter().enumerate().rev() {
            let both = match fit(one, other) {
                0 => 0,
                fit => fit + best[(i + 1) * width + j + 1],
            };
            let skip = best[(i + 1) * width + j].max(best[i * width + j + 1]);
            best[i * width + j] = both.max(skip);
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut groups = vec![Vec::new()];
    while i < ones.len() || j < others.len() {
        let pairs = groups.last_mut().expect("there is one");
        let here = best[i * width + j];
        match (ones.get(i), others.get(j)) {
            (Some(one), Some(other))
                if fit(one, other) > 0
                    && here == fit(one, other) + best[(i + 1) * width + j + 1] =>
            {
                match one == other {
                    true => groups.push(Vec::new()),
                    false => pairs.push((Some(&**one), Some(&**other))),
                }
                (i, j) = (i + 1, j + 1);
            }
            (Some(one), other) if other.is_none() || here == best[(i + 1) * width + j] => {
                pairs.push((Some(&**one), None));
                i += 1;
            }
            (_, other) => {
                pairs.push((None, other.map(|line| &**line)));
                j += 1;
            }
        }
    }
    groups.retain(|pairs| !pairs.is_empty());
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    fn differ(ones: &str, others: &str, expected: &[Pair]) {
        assert_eq!(
            differing(&lines(ones), &lines(others)).concat(),
            expected,
            "{ones:?}, {others:?}"
        );
    }

    #[test]
    fn a_line_is_about_its_first_words() {
        for (line, expected) in [
            ("  threads: 1", "  threads: "),
            ("  pages: 1:2:3", "  pages: "),
            ("  node n1: u0", "  node "),
            ("binder state:", "binder state:"),
            ("7 of 8", ""),
            ("", ""),
        ] {
            assert_eq!(about(line), expected);
        }
    }

    #[test]
    fn what_is_the_same_is_left_out() {
        differ("", "", &[]);
        differ("a\nb: 1", "a\nb: 1", &[]);
    }

    #[test]
    fn lines_about_the_same_are_paired() {
        differ(
            "a: 1\nb: 1\nc",
            "a: 2\nb: 1\nc",
            &[(Some("a: 1"), Some("a: 2"))],
        );
        differ(
            "a: 1\nb: 1",
            "c: 1\nb: 1",
            &[(Some("a: 1"), None), (None, Some("c: 1"))],
        );
    }

    #[test]
    fn lines_of_one_text_are_shown_where_they_are() {
        differ("a\nb\nc", "a\nc", &[(Some("b"), None)]);
        differ("a\nc", "a\nb\nc", &[(None, Some("b"))]);
        differ("a", "", &[(Some("a"), None)]);
        differ("", "a", &[(None, Some("a"))]);
    }

    #[test]
    fn another_order_is_seen() {
        let pairs = [(Some("a"), None), (None, Some("a"))];
        differ("a\nb\nc", "b\nc\na", &pairs);
    }

    #[test]
    fn lines_belong_together_until_one_is_the_same() {
        let (ones, others) = (lines("a\nb\nc\nd"), lines("1\n2\nc\n3"));
        let groups = differing(&ones, &others);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [4, 2]);
    }
}

//! Lists of tests: what is asked for, and so what a run is counted against.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// Names of tests, without attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List(Vec<String>);

/// The Ith of N parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    of: usize,
}

impl Shard {
    /// Everything.
    pub const WHOLE: Shard = Shard { index: 1, of: 1 };

    /// Whether what cannot be divided belongs to this part.
    pub fn is_first(self) -> bool {
        self.index == 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not I/N with 1 ≤ I ≤ N, such as 2/3");
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let (index, of) = (
            index.parse().map_err(|_| wrong())?,
            of.parse().map_err(|_| wrong())?,
        );
        if index == 0 || index > of {
            return Err(wrong());
        }
        Ok(Self { index, of })
    }
}

impl List {
    /// A file with a name a line; `#` begins a comment.
    pub fn plain(path: &Path) -> Result<Self> {
        let names = lines(path)?.into_iter().collect();
        Ok(Self(names))
    }

    /// A guideline as a table: capability, name in the guideline, id, flagged, name today. What is flagged, or exists no
    /// longer, is not asked for.
    pub fn guideline(path: &Path) -> Result<Self> {
        let mut names = BTreeSet::new();
        for line in lines(path)? {
            let columns: Vec<&str> = line.split('\t').collect();
            ensure!(
                columns.len() == 5,
                "{}: five columns, not: {line}",
                path.display()
            );
            if columns[3] == "-" && columns[4].starts_with("tempest.") {
                names.insert(columns[4].to_owned());
            }
        }
        Ok(Self(names.into_iter().collect()))
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// What is in another list, contains a text, and belongs to a part. Tests of one class stay together, because they
    /// share what the class sets up.
    pub fn select(&self, within: Option<&List>, containing: Option<&str>, shard: Shard) -> List {
        let chosen: Vec<&String> = self
            .0
            .iter()
            .filter(|n| within.is_none_or(|w| w.0.contains(n)) && containing.is_none_or(|c| n.contains(c)))
            .collect();
        let classes: BTreeSet<&str> = chosen.iter().map(|n| class(n)).collect();
        let classes: Vec<&str> = classes.into_iter().collect();
        let mine = |name: &str| {
            let at = classes.binary_search(&class(name)).unwrap_or(0);
            at % shard.of == shard.index - 1
        };
        List(chosen.into_iter().filter(|n| mine(n)).cloned().collect())
    }
}

/// The class of a test.
pub fn class(test: &str) -> &str {
    test.rsplit_once('.').map_or(test, |(class, _)| class)
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim);
    Ok(lines
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use allod_tests::paths;

    fn scs() -> List {
        List::plain(&paths::root().join("tests/conformance/scs-0128.txt")).unwrap()
    }

    #[test]
    fn the_lists_are_whole() {
        assert_eq!(scs().names().len(), 258);
        let powered =
            List::guideline(&paths::root().join("tests/conformance/powered-2020.06-compute.tsv")).unwrap();
        assert!(powered.names().len() > 190, "{}", powered.names().len());
        let smoke = List::plain(&paths::root().join("tests/conformance/smoke.txt")).unwrap();
        for name in smoke.names() {
            assert!(scs().names().contains(name), "{name}");
        }
    }

    #[test]
    fn parts_are_disjoint_whole_and_keep_classes_together() {
        let all = scs();
        let mut seen = BTreeSet::new();
        let mut classes = BTreeSet::new();
        for index in 1..=3 {
            let part = all.select(None, None, Shard { index, of: 3 });
            let mine: BTreeSet<&str> = part.names().iter().map(|n| class(n)).collect();
            for class in mine {
                assert!(classes.insert(class.to_owned()), "{class} is in two parts");
            }
            for name in part.names() {
                assert!(seen.insert(name.clone()), "{name} is in two parts");
            }
        }
        assert_eq!(seen.len(), 258);
    }

    #[test]
    fn a_part_is_written_as_a_fraction() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, of: 3 }));
        for wrong in ["", "1", "0/1", "2/1", "a/b", "1/0"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}

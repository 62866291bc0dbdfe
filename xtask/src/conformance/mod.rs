//! `cargo xtask conformance`: a cloud judged by tests that others wrote, against lists that do not move.

mod checks;
mod list;
mod tempest;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use allod_tests::cloud::{ADMIN, Cloud, Options as CloudOptions};
use allod_tests::progress::Steps;
use allod_tests::tenant::{self, Tenant};
use allod_tests::{apt, paths, venv};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use self::list::{List, Shard};
use crate::test;

/// What judges need beside what tests need.
const HOST_PACKAGES: &[&str] = &["rng-tools5"];

/// A judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// SCS-compatible IaaS v5.1: SCS-0128's tests, and the checks of its other standards.
    Scs,
    /// OpenStack Powered Compute 2020.06: the required tests that are not flagged.
    Powered,
    /// All of Tempest's tests of block storage.
    Volume,
}

/// How a suite is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The Ith of N parts of the list.
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    pub shard: Shard,
    /// Only a few tests of each kind, for a quick look.
    #[arg(long)]
    pub smoke: bool,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// How many tests run at once.
    #[arg(long, default_value_t = 2)]
    pub concurrency: u32,
}

impl Options {
    /// What CI runs: all.
    pub fn whole() -> Self {
        Options {
            shard: Shard::WHOLE,
            smoke: false,
            only: None,
            concurrency: 2,
        }
    }
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Suite::Scs => "scs",
            Suite::Powered => "powered",
            Suite::Volume => "volume",
        }
    }

    /// The tests of OpenStack's own suite that it asks for.
    fn list(self, options: &Options) -> Result<List> {
        let folder = paths::root().join("tests/conformance");
        let all = match self {
            Suite::Scs => List::plain(&folder.join("scs-0128.txt"))?,
            Suite::Powered => List::guideline(&folder.join("powered-2020.06-compute.tsv"))?,
            Suite::Volume => List::plain(&folder.join("tempest-volume.txt"))?,
        };
        let smoke = match options.smoke {
            true => Some(List::plain(&folder.join("smoke.txt"))?),
            false => None,
        };
        Ok(all.select(smoke.as_ref(), options.only.as_deref(), options.shard))
    }

    /// Whether the checks that are not tests of OpenStack's suite belong to this run.
    fn has_checks(self, options: &Options) -> bool {
        self == Suite::Scs && options.shard.is_first() && options.only.is_none()
    }
}

/// One test's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The test's name.
    pub test: String,
    /// Nothing when it passed, else why it did not.
    pub failure: Option<String>,
}

/// Where what a run leaves is found: results, the judge's configuration and log.
pub fn folder(suite: Suite) -> PathBuf {
    paths::target().join("conformance").join(suite.name())
}

/// Installs, builds (unless `ALLOD` names a program), starts a cloud, runs the suite, and ends with a line of totals.
pub fn run(suite: Suite, options: &Options, steps: &Steps) -> Result<()> {
    test::needs(steps)?;
    needs(steps)?;
    if env::var_os("ALLOD").is_none() {
        test::binary_and_image(steps)?;
    }
    judge(suite, options, steps)
}

/// Names and installs what judges need beside what tests need.
pub fn needs(steps: &Steps) -> Result<()> {
    steps.say(&format!("Debian packages: {}", HOST_PACKAGES.join(" ")));
    steps.say(&venv::TEMPEST.describe());
    apt::install(HOST_PACKAGES, steps)?;
    venv::TEMPEST.install(steps)
}

/// The same with what is installed and built already.
pub fn judge(suite: Suite, options: &Options, steps: &Steps) -> Result<()> {
    let folder = folder(suite);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let list = suite.list(options)?;
    let began = Instant::now();

    let mut cloud = Cloud::start(CloudOptions {
        program: paths::allod(),
        more: "[identity]\nunique_last_passwords = 2\n".into(),
        ..CloudOptions::default()
    })?;
    let result = outcomes(suite, options, &list, &cloud, &folder, steps);
    fs::copy(cloud.log_path(), folder.join("daemon.log"))?;
    ensure!(cloud.is_running()?, "the daemon ended:\n{}", cloud.log(20));
    let outcomes = result?;
    cloud.end()?;

    let report = Report::new(
        outcomes,
        &known(&paths::root().join("tests/conformance/known-failures.txt"))?,
    );
    fs::write(folder.join("results.txt"), report.lines())?;
    for line in report.lines().lines().filter(|l| !l.starts_with("passed")) {
        println!("{line}");
    }
    println!(
        "conformance {}: {}, in {:.0} s",
        suite.name(),
        report.totals(),
        began.elapsed().as_secs_f64()
    );
    ensure!(report.is_as_expected(), "tests failed; see {}", folder.display());
    Ok(())
}

/// What is known to fail, and why.
fn known(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim);
    let known = lines
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|line| {
            let (test, why) = line
                .split_once("  ")
                .with_context(|| format!("{}: a name, two spaces, and why, not: {line}", path.display()))?;
            Ok((test.to_owned(), why.trim().to_owned()))
        });
    known.collect()
}

/// All outcomes, held against what is known to fail.
struct Report {
    outcomes: Vec<Outcome>,
    known: BTreeMap<String, String>,
}

impl Report {
    fn new(outcomes: Vec<Outcome>, known: &BTreeMap<String, String>) -> Self {
        Self {
            outcomes,
            known: known.clone(),
        }
    }

    fn failed(&self) -> usize {
        self.outcomes.iter().filter(|o| o.failure.is_some()).count()
    }

    /// A line an outcome.
    fn lines(&self) -> String {
        let mut text = String::new();
        for outcome in &self.outcomes {
            let test = &outcome.test;
            let line = match (&outcome.failure, self.known.get(test)) {
                (None, None) => format!("passed  {test}"),
                (None, Some(why)) => format!("PASSED  {test}: known-failures.txt says it cannot: {why}"),
                (Some(failure), None) => format!("FAILED  {test}: {failure}"),
                (Some(failure), Some(why)) => format!("failed  {test}: {failure} ({why})"),
            };
            text += &line;
            text.push('\n');
        }
        text
    }

    fn totals(&self) -> String {
        format!(
            "{} of {} passed, {} failed",
            self.outcomes.len() - self.failed(),
            self.outcomes.len(),
            self.failed()
        )
    }

    /// Whether exactly what is known to fail has failed.
    fn is_as_expected(&self) -> bool {
        !self.outcomes.is_empty()
            && self
                .outcomes
                .iter()
                .all(|o| o.failure.is_some() == self.known.contains_key(&o.test))
    }
}

fn outcomes(
    suite: Suite,
    options: &Options,
    list: &List,
    cloud: &Cloud,
    folder: &Path,
    steps: &Steps,
) -> Result<Vec<Outcome>> {
    let step = steps.start("images and flavors");
    tenant::prepare(cloud)?;
    step.done("");
    let mut outcomes = Vec::new();
    if suite.has_checks(options) {
        let tenant = Tenant::new(cloud, "judge")?;
        outcomes.extend(checks::run(&tenant, folder, steps)?);
    }
    outcomes.extend(tempest::run(
        list,
        cloud,
        ADMIN,
        folder,
        options.concurrency,
        steps,
    )?);
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_may_fail_and_it_must() {
        let known = BTreeMap::from([("b".to_owned(), "not yet".to_owned())]);
        let report = |ends: [bool; 2]| {
            let outcomes = ["a", "b"].iter().zip(ends).map(|(test, passed)| Outcome {
                test: (*test).to_owned(),
                failure: (!passed).then(|| "404".to_owned()),
            });
            Report::new(outcomes.collect(), &known)
        };
        assert!(report([true, false]).is_as_expected());
        assert_eq!(report([true, false]).totals(), "1 of 2 passed, 1 failed");
        assert!(!report([false, false]).is_as_expected());
        assert!(!report([true, true]).is_as_expected(), "the file would lie");
        assert!(
            !Report::new(Vec::new(), &known).is_as_expected(),
            "no test, no success"
        );
    }

    #[test]
    fn what_is_known_is_on_a_list() {
        let folder = paths::root().join("tests/conformance");
        let lists = [
            List::plain(&folder.join("scs-0128.txt")).unwrap(),
            List::plain(&folder.join("scs-iaas-v5.1.txt")).unwrap(),
            List::guideline(&folder.join("powered-2020.06-compute.tsv")).unwrap(),
        ];
        for test in known(&folder.join("known-failures.txt")).unwrap().keys() {
            assert!(lists.iter().any(|l| l.names().contains(test)), "{test}");
        }
    }
}

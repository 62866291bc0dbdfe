//! OpenStack's own integration tests, against a cloud of ours.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use allod_tests::cloud::Cloud;
use allod_tests::progress::Steps;
use allod_tests::run::{finish, line, tail};
use allod_tests::{paths, tenant, venv};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Outcome;
use super::list::{List, class};

/// Runs the tests of a list.
pub fn run(
    list: &List,
    cloud: &Cloud,
    admin: &str,
    folder: &Path,
    concurrency: u32,
    steps: &Steps,
) -> Result<Vec<Outcome>> {
    configure(cloud, admin, folder)?;
    finish(stestr(cloud, folder).arg("init"))?;
    let known = discover(cloud, folder)?;
    let mut chosen = String::new();
    for name in list.names() {
        if let Some(id) = known.get(name.as_str()) {
            chosen += id;
            chosen.push('\n');
        }
    }
    // Told of no test, the judge would run all that it has.
    ensure!(!chosen.is_empty(), "no test of the list is known to the judge");
    fs::write(folder.join("tests.txt"), chosen)?;
    let results = execute(cloud, folder, list.names().len(), concurrency, steps)?;
    Ok(judge(list, &known, &results))
}

/// What the judge said of each test, and of each class that could not be set up.
type Results = BTreeMap<String, (String, String)>;

/// A test that did not pass, whatever the cause, has failed: the list is what counts.
fn judge(list: &List, known: &BTreeMap<String, String>, results: &Results) -> Vec<Outcome> {
    let judged = list.names().iter().map(|name| {
        let failure = match results.get(name) {
            Some((status, _)) if status == "success" => None,
            Some((status, reason)) => Some(format!("{status}: {reason}")),
            None => Some(match results.get(&format!("setUpClass ({})", class(name))) {
                Some((_, reason)) => format!("its class could not be set up: {reason}"),
                None if known.contains_key(name) => "it did not run".to_owned(),
                None => "the judge has no such test".to_owned(),
            }),
        };
        Outcome {
            test: name.clone(),
            failure,
        }
    });
    judged.collect()
}

/// Writes `tempest.conf` from the template, with what only this cloud knows.
fn configure(cloud: &Cloud, admin: &str, folder: &Path) -> Result<()> {
    let templates = paths::root().join("tests/conformance");
    let mut text = fs::read_to_string(templates.join("tempest.conf"))?;
    let field = |arguments: &[&str], field: &str| cloud.field(admin, arguments, field);
    // A second image and a second flavor, so that rebuilding and resizing change something.
    tenant::upload(cloud, "second", "custom")?;
    #[rustfmt::skip]
    cloud.openstack(admin, &["flavor", "create", "--vcpus", "2", "--ram", "320", "--disk", "2", "small"])?;
    let extensions = cloud.json(admin, &["extension", "list", "--network"])?;
    let extensions: Vec<&str> = extensions
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|e| e["Alias"].as_str())
        .collect();
    let values = [
        ("url", format!("https://{}", cloud.listen())),
        ("ca", cloud.ca().display().to_string()),
        ("admin-password", cloud.admin_password()?),
        ("image", field(&["image", "show", tenant::IMAGE], "id")?),
        ("image-alt", field(&["image", "show", "second"], "id")?),
        ("flavor", field(&["flavor", "show", tenant::FLAVOR], "id")?),
        ("flavor-alt", field(&["flavor", "show", "small"], "id")?),
        ("external-network", field(&["network", "show", "ext-net"], "id")?),
        ("network-extensions", extensions.join(",")),
        ("ssh-user", allod_tests::ssh::USER.to_owned()),
        ("folder", folder.display().to_string()),
    ];
    for (name, value) in values {
        // oslo.config expands `$`.
        text = text.replace(&format!("{{{name}}}"), &value.replace('$', "$$"));
    }
    if let Some(at) = text.find('{') {
        bail!(
            "tempest.conf has a placeholder without a value: {}",
            tail(&text[at..], 1)
        );
    }
    fs::create_dir_all(folder.join("etc"))?;
    fs::create_dir_all(folder.join("lock"))?;
    fs::write(folder.join("etc/tempest.conf"), text)?;
    let package = finish(std::process::Command::new(venv::TEMPEST.program("python")).args([
        "-c",
        "import os, tempest; print(os.path.dirname(tempest.__file__))",
    ]))?;
    let package = package.trim();
    fs::write(
        folder.join(".stestr.conf"),
        format!(
            "[DEFAULT]\ntest_path={package}/test_discover\ntop_dir={package}\ngroup_regex=([^\\.]*\\.)*\n"
        ),
    )?;
    Ok(())
}

fn stestr(cloud: &Cloud, folder: &Path) -> std::process::Command {
    let mut command = cloud.command(venv::TEMPEST.program("stestr"));
    let bin = venv::TEMPEST.path().join("bin");
    command
        .current_dir(folder)
        .env("TEMPEST_CONFIG_DIR", folder.join("etc"))
        .env("TEMPEST_CONFIG", "tempest.conf")
        // stestr starts `python` by name.
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
        .env("PYTHON", bin.join("python"));
    command
}

/// The judge's tests: names without attributes, and the ids by which it takes them.
fn discover(cloud: &Cloud, folder: &Path) -> Result<BTreeMap<String, String>> {
    let listed = finish(stestr(cloud, folder).arg("list"))?;
    let known = listed.lines().map(|id| (bare(id).to_owned(), id.to_owned()));
    Ok(known.collect())
}

/// A test's name without its attributes.
fn bare(id: &str) -> &str {
    id.split('[').next().unwrap_or(id)
}

fn execute(cloud: &Cloud, folder: &Path, total: usize, concurrency: u32, steps: &Steps) -> Result<Results> {
    let step = steps.start("run the tests");
    let mut command = stestr(cloud, folder);
    command
        .args(["run", "--subunit", "--concurrency", &concurrency.to_string()])
        .arg("--load-list")
        .arg(folder.join("tests.txt"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(folder.join("stestr.log"))?);
    let mut judge = command
        .spawn()
        .with_context(|| format!("cannot start {}", line(&command)))?;
    let stream = judge.stdout.take().context("no standard output")?;
    let mut reader = std::process::Command::new(venv::TEMPEST.program("python"))
        .arg(paths::root().join("tests/conformance/results.py"))
        .stdin(stream)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start results.py")?;
    let said = reader.stdout.take().context("no standard output")?;
    let mut details = File::create(folder.join("failures.txt"))?;
    let mut results = Results::new();
    let mut passed = 0;
    for text in BufReader::new(said).lines() {
        let result: Value = serde_json::from_str(&text?)?;
        let field = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
        let (id, status, reason) = (field("id"), field("status"), field("reason"));
        if status == "success" {
            passed += 1;
        } else {
            steps.say(&format!("{status}  {}: {reason}", bare(&id)));
            writeln!(details, "=== {id}: {status}\n{}\n", field("details"))?;
        }
        step.at(results.len() as u64, total as u64, bare(&id));
        results.insert(bare(&id).to_owned(), (status, reason));
    }
    reader.wait()?;
    // Its own exit status says no more than the results.
    judge.wait()?;
    if results.is_empty() {
        let log = fs::read_to_string(folder.join("stestr.log")).unwrap_or_default();
        bail!("no test ran:\n{}", tail(&log, 20));
    }
    step.done(&format!("{passed} passed"));
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passed_has_passed() {
        let names = [
            "a.C.test_1",
            "a.C.test_2",
            "a.C.test_3",
            "a.D.test_4",
            "a.D.test_5",
        ];
        let path = std::env::temp_dir().join(format!("list-{}", std::process::id()));
        fs::write(&path, names.join("\n")).unwrap();
        let list = List::plain(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let known = names[..4].iter().map(|n| ((*n).to_owned(), format!("{n}[id]")));
        let of = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        let results = Results::from([
            ("a.C.test_1".to_owned(), of("success", "")),
            ("a.C.test_2".to_owned(), of("skip", "not enabled")),
            ("a.C.test_3".to_owned(), of("fail", "404")),
            ("setUpClass (a.D)".to_owned(), of("fail", "no network")),
        ]);
        let outcomes = judge(&list, &known.collect(), &results);
        let said: Vec<&str> = outcomes
            .iter()
            .map(|o| o.failure.as_deref().unwrap_or("passed"))
            .collect();
        assert_eq!(
            said,
            [
                "passed",
                "skip: not enabled",
                "fail: 404",
                "its class could not be set up: no network",
                "its class could not be set up: no network",
            ]
        );
    }
}

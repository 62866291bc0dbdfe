//! The checks of the Sovereign Cloud Stack's other standards: ours, and its own runner where there is a copy of it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use allod_tests::paths;
use allod_tests::progress::Steps;
use allod_tests::run::{failure, output};
use allod_tests::tenant::Tenant;
use allod_tests::venv;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Outcome;
use super::list::List;

/// The folder `Tests` of a copy of the standards' repository; its runner then judges, too.
const STANDARDS: &str = "SCS_STANDARDS";

/// Checks that need a guest.
const ENTROPY: &str = "scs-0101-entropy-avail";
const FIPS: &str = "scs-0101-fips-test";

/// Blocks of 20,000 bits that `rngtest` looks at, and how many of them may look unlikely (SCS-0101).
const BLOCKS: u32 = 1000;
const UNLIKELY: u32 = 5;

/// Runs all checks of the list.
pub fn run(tenant: &Tenant, folder: &Path, steps: &Steps) -> Result<Vec<Outcome>> {
    let list = List::plain(&paths::root().join("tests/conformance/scs-iaas-v5.1.txt"))?;
    let mut failures = of_the_api(&list, tenant, steps)?;
    let step = steps.start("entropy in a guest");
    for (check, result) in in_a_guest(tenant)? {
        failures.insert(check.to_owned(), result.err().map(|e| format!("{e:#}")));
    }
    step.done("");
    if let Some(copy) = env::var_os(STANDARDS) {
        for (check, said) in by_their_runner(&PathBuf::from(copy), &list, tenant, folder, steps)? {
            let failure = (said != "PASS").then(|| format!("the standards' runner says {said}"));
            let entry = failures.entry(check).or_default();
            *entry = entry.take().or(failure);
        }
    }
    let outcomes = list.names().iter().map(|check| Outcome {
        test: check.clone(),
        failure: failures
            .get(check)
            .cloned()
            .unwrap_or_else(|| Some("it did not run".into())),
    });
    Ok(outcomes.collect())
}

fn of_the_api(list: &List, tenant: &Tenant, steps: &Steps) -> Result<BTreeMap<String, Option<String>>> {
    let step = steps.start("checks of the API");
    let cloud = tenant.cloud;
    let mut command = cloud.command(venv::CLIENT.program("python"));
    command
        .arg(paths::root().join("tests/conformance/iaas.py"))
        .arg(&tenant.name)
        .args(list.names().iter().filter(|c| !c.starts_with("scs-0101-")))
        .env("OS_CLIENT_CONFIG_FILE", cloud.clouds_yaml());
    let output = output(&mut command)?;
    ensure!(output.status.success(), "{}", failure(&command, &output));
    let mut failures = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let result: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
        let failure = (text("status") != "success").then(|| text("reason"));
        failures.insert(text("id"), failure);
    }
    step.done("");
    Ok(failures)
}

fn in_a_guest(tenant: &Tenant) -> Result<[(&'static str, Result<()>); 2]> {
    tenant.network("10.20.0.0/24")?;
    tenant.ssh_group()?;
    tenant.server("entropy", &[&tenant.name], &["--network", &tenant.name])?;
    let address = tenant.floating_ip("entropy")?;
    tenant.wait_for_ssh("entropy", &address)?;
    let results = [
        (ENTROPY, entropy(tenant, &address)),
        (FIPS, fips(tenant, &address)),
    ];
    tenant.run(&["server", "delete", "--wait", "entropy"])?;
    Ok(results)
}

fn entropy(tenant: &Tenant, address: &str) -> Result<()> {
    let bits = tenant.ssh(address, "cat /proc/sys/kernel/random/entropy_avail")?;
    ensure!(bits.trim() == "256", "entropy_avail is {}", bits.trim());
    Ok(())
}

/// The guest draws, `rngtest` judges outside: FIPS 140-2's tests of a block of 20,000 bits.
fn fips(tenant: &Tenant, address: &str) -> Result<()> {
    // The first 32 bits are only compared with what follows.
    let bytes = BLOCKS * 2500 + 4;
    let script = format!("head -c {bytes} /dev/random");
    let mut guest = tenant
        .cloud
        .ssh_command(&tenant.key, address, &script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let drawn = guest.stdout.take().context("no standard output")?;
    let blocks = BLOCKS.to_string();
    let judged = Command::new("rngtest")
        .args(["-c", &blocks])
        .stdin(drawn)
        .output()
        .context("cannot start rngtest")?;
    guest.wait()?;
    let said = String::from_utf8_lossy(&judged.stderr).into_owned();
    let count = |what: &str| -> Option<u32> {
        let (_, rest) = said.split_once(&format!("FIPS 140-2 {what}: "))?;
        rest.lines().next()?.trim().parse().ok()
    };
    let (Some(good), Some(bad)) = (count("successes"), count("failures")) else {
        bail!("rngtest says: {said}");
    };
    ensure!(good + bad == BLOCKS, "rngtest saw {} blocks", good + bad);
    ensure!(bad <= UNLIKELY, "{bad} of {BLOCKS} blocks look unlikely");
    Ok(())
}

/// What the standards' own runner says of each check that needs no guest with an internet of its own.
fn by_their_runner(
    copy: &Path,
    list: &List,
    tenant: &Tenant,
    folder: &Path,
    steps: &Steps,
) -> Result<Vec<(String, String)>> {
    venv::STANDARDS.install(steps)?;
    let step = steps.start("the standards' own runner");
    let cloud = tenant.cloud;
    let mut command = cloud.command(venv::STANDARDS.program("python"));
    command
        .arg(copy.join("iaas/openstack_test.py"))
        .args(["-c", &tenant.name])
        .args(list.names().iter().filter(|c| !c.starts_with("scs-0101-")))
        .env("OS_CLIENT_CONFIG_FILE", cloud.clouds_yaml());
    let output = output(&mut command)?;
    ensure!(output.status.success(), "{}", failure(&command, &output));
    fs::write(folder.join("runner.log"), &output.stderr)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let results = said.lines().filter_map(|l| l.split_once(": "));
    let results: Vec<(String, String)> = results.map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    step.done(&format!(
        "{} of {} pass",
        results.iter().filter(|(_, said)| said == "PASS").count(),
        results.len()
    ));
    Ok(results)
}

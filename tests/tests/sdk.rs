//! What programs do through openstacksdk.

use allod_tests::cloud::{ADMIN, Cloud, Options};
use allod_tests::run::{failure, output};
use allod_tests::tenant::{self, Tenant};
use allod_tests::{paths, venv};

#[test]
fn a_server_in_one_call_and_writing_what_was_read_changes_nothing() {
    let cloud = Cloud::start(Options::default()).unwrap();
    tenant::prepare(&cloud).unwrap();
    let tenant = Tenant::new(&cloud, "sdk").unwrap();
    tenant.network("10.0.0.0/24").unwrap();
    let mut command = cloud.command(venv::CLIENT.program("python"));
    command
        .arg(paths::root().join("tests/sdk.py"))
        .args([&tenant.name, ADMIN, tenant::IMAGE, tenant::FLAVOR])
        .env("OS_CLIENT_CONFIG_FILE", cloud.clouds_yaml());
    let output = output(&mut command).unwrap();
    assert!(output.status.success(), "{}", failure(&command, &output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let cycles = said.lines().filter(|l| l.starts_with("cycle ")).count();
    assert!(cycles >= 25, "{cycles} cycles:\n{said}");
    drop(tenant);
    cloud.end().unwrap();
}

//! A child outlives the daemon that started it, and another one finds it. Needs root.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use process::child::{Isolation, Launcher, Runtime};
use process::control::Client;

const TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn a_killed_daemons_child_is_found_and_answers() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_process-probe"))
        .arg("daemon")
        .arg(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let runtime = Runtime::open(&folder.path().join("run")).unwrap();
    let records = runtime.list().unwrap();
    let record = &records["serve-1"];
    let process = runtime.find(record).unwrap().expect("it runs");
    let mut client: Client<i64, i64> = Client::connect(record.control.as_ref().unwrap(), TIMEOUT).unwrap();
    assert_eq!(client.call(&21, &[]).unwrap(), 42);

    let mut other = record.clone();
    other.start_time += 1;
    assert!(
        runtime.find(&other).unwrap().is_none(),
        "another process with the same number is not taken for it"
    );
    other.start_time -= 1;
    other.boot_id = "another boot".into();
    assert!(runtime.find(&other).unwrap().is_none(), "nor one of another boot");

    assert_eq!(client.call(&0, &[]).unwrap(), 0);
    assert!(
        process.wait(Some(TIMEOUT)).unwrap().is_some(),
        "its end is seen though it is not a child"
    );
    assert!(runtime.find(record).unwrap().is_none());
    Launcher::new(Isolation::Process, runtime.clone())
        .forget("serve-1")
        .unwrap();
    assert!(runtime.list().unwrap().is_empty());
}

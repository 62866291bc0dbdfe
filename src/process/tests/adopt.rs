//! A child outlives the daemon that started it, and another one finds it. Needs root.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use process::child::{Exit, Isolation, Launch, Launcher, Runtime};
use process::control::Client;
use process::jail::{Files, Limits, Profile};

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

#[test]
fn a_child_on_a_thread_is_told_and_heard_in_the_same_way() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::open(&folder.path().join("run")).unwrap();
    let launcher = Launcher::new(Isolation::Thread, runtime);
    let launch = |spec| {
        launcher.launch(&Launch {
            kind: "double",
            main: |start| {
                let number: i64 = start.spec().map_err(|e| e.to_string())?;
                if number < 0 {
                    start.fail("negative");
                    return Err("negative".into());
                }
                let daemon = start.ready().map_err(|e| e.to_string())?;
                daemon.send(&(number * 2), &[]).map_err(|e| e.to_string())
            },
            name: "double-1".into(),
            spec: &spec,
            descriptors: Vec::new(),
            profile: Profile::Basic,
            files: Files::default(),
            limits: Limits::default(),
            cgroup: Default::default(),
            oom_score_adj: 0,
            control: None,
            note: serde_json::Value::Null,
        })
    };
    let mut launched = launch(21).unwrap();
    assert_eq!(launched.connection.recv::<i64>().unwrap().0, 42);
    assert_eq!(launched.task.wait(Some(TIMEOUT)).unwrap(), Some(Exit::Unknown));
    assert_eq!(
        launch(-1).unwrap_err().to_string(),
        "'double' could not start: negative"
    );
}

#[test]
fn a_log_that_has_grown_too_long_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut launcher = Launcher::new(
        Isolation::Process,
        Runtime::open(&folder.path().join("run")).unwrap(),
    );
    launcher.trim_logs().unwrap();
    launcher.logs = Some(folder.path().join("log"));
    launcher.trim_logs().unwrap();
    std::fs::create_dir(folder.path().join("log")).unwrap();
    let [long, short] = ["long", "short"].map(|name| launcher.log_path(name).unwrap());
    let mut writer = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&long)
        .unwrap();
    writer.write_all(&vec![b'x'; 2 << 20]).unwrap();
    std::fs::write(&short, "kept").unwrap();
    launcher.trim_logs().unwrap();
    writer.write_all(b"after").unwrap();
    assert_eq!(std::fs::read_to_string(&long).unwrap(), "after");
    assert_eq!(std::fs::read_to_string(&short).unwrap(), "kept");
    launcher.remove_log("long").unwrap();
    launcher.remove_log("long").unwrap();
    assert!(!long.exists());
}

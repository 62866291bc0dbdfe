//! What the monitor's process may do, and how much less its threads may. Needs root.

use std::time::Duration;

use process::child::{CgroupLimits, Exit, Isolation, Launch, Launcher, Runtime};
use process::control::Error;
use process::jail::{Files, Limits, Profile};

/// What a thread of this kind says after this system call, or how the process ended.
fn attempt(who: &str, what: &str) -> Result<String, Exit> {
    let folder = tempfile::tempdir().unwrap();
    let mut launcher = Launcher::new(
        Isolation::Process,
        Runtime::open(&folder.path().join("run")).unwrap(),
    );
    launcher.program = env!("CARGO_BIN_EXE_vmm-probe").into();
    launcher.logs = Some(folder.path().join("log"));
    launcher.first_uid = 760_000 + std::process::id() % 1000 * 10;
    let mut launched = launcher
        .launch(&Launch {
            kind: "try",
            main: |_| Err("threads are not tested here".into()),
            name: "try-1".into(),
            spec: &(who, what),
            descriptors: Vec::new(),
            profile: Profile::Vmm,
            files: Files::default(),
            limits: Limits::default(),
            cgroup: CgroupLimits::default(),
            oom_score_adj: 500,
            control: None,
            note: serde_json::Value::Null,
        })
        .unwrap();
    let answer = launched.connection.recv();
    let exit = launched.task.wait(Some(Duration::from_secs(20))).unwrap();
    launcher.forget("try-1").unwrap();
    match answer {
        Ok((said, _)) => Ok(said),
        Err(Error::Closed) => Err(exit.expect("it ends")),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn threads_may_do_less_than_their_process() {
    let killed = Err(Exit::Signal(libc::SIGSYS));
    let ran = || Ok("ran".to_owned());
    for (who, what, expected) in [
        // KVM_CREATE_VM, KVM_RUN, and one that nobody needs.
        ("process", "kvm 01", ran()),
        ("process", "kvm 80", ran()),
        ("process", "kvm ff", killed.clone()),
        ("process", "socket", ran()),
        ("process", "internet", killed.clone()),
        ("process", "thread", ran()),
        ("process", "memfd", ran()),
        ("vcpu", "kvm 80", ran()),
        ("vcpu", "kvm 01", killed.clone()),
        ("vcpu", "memfd", killed.clone()),
        // Devices begin on a vCPU's thread, and get threads and sockets of their own from it.
        ("vcpu", "socket", ran()),
        ("vcpu", "thread", ran()),
        ("device", "nothing", ran()),
        ("device", "kvm 80", killed.clone()),
        ("device", "socket", killed.clone()),
        ("device", "thread", killed.clone()),
        ("device", "memfd", killed.clone()),
    ] {
        assert_eq!(attempt(who, what), expected, "{who}: {what}");
    }
}

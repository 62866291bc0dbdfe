//! What a jailed child can and cannot do. Needs root.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::child::{Exit, Isolation, Launch, Launched, Launcher, Runtime};
use process::control::Error;
use process::jail::{Enforcement, Files, Limits, Profile};
use serde_json::json;

struct Prison {
    folder: tempfile::TempDir,
    launcher: Launcher,
}

fn prison(enforcement: Enforcement) -> Prison {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::open(&folder.path().join("run")).unwrap();
    let mut launcher = Launcher::new(Isolation::Process, runtime);
    launcher.program = env!("CARGO_BIN_EXE_process-probe").into();
    launcher.enforcement = enforcement;
    launcher.logs = Some(folder.path().join("log"));
    Prison { folder, launcher }
}

impl Drop for Prison {
    fn drop(&mut self) {
        for record in self.launcher.runtime.list().unwrap().values() {
            if let Some(process) = self.launcher.runtime.find(record).unwrap() {
                process.kill().unwrap();
                process.wait(Some(Duration::from_secs(20))).unwrap();
            }
            self.launcher.forget(&record.name).unwrap();
        }
    }
}

impl Prison {
    fn launch(&self, what: &str, argument: &str, files: Files) -> Launched {
        self.launcher
            .launch(&Launch {
                kind: "try",
                main: |_| Err("threads are not tested here".into()),
                name: "try-1".into(),
                spec: &json!({ "what": what, "argument": argument }),
                descriptors: Vec::new(),
                profile: Profile::Basic,
                files,
                limits: Limits::default(),
                cgroup: Default::default(),
                oom_score_adj: 500,
                control: None,
                note: json!(null),
            })
            .unwrap()
    }

    /// What the child says, or how it ended.
    fn attempt_with(&self, what: &str, argument: &str, files: Files) -> Result<Result<String, String>, Exit> {
        let mut launched = self.launch(what, argument, files);
        let answer = launched.connection.recv();
        let exit = launched
            .task
            .wait(Some(Duration::from_secs(20)))
            .unwrap()
            .expect("the child ends");
        self.launcher.forget("try-1").unwrap();
        match answer {
            Ok((outcome, _)) => Ok(outcome),
            Err(Error::Closed) => Err(exit),
            Err(error) => panic!("{error}"),
        }
    }

    fn attempt(&self, what: &str, argument: &str) -> Result<Result<String, String>, Exit> {
        self.attempt_with(what, argument, Files::default())
    }
}

const KILLED: Result<Result<String, String>, Exit> = Err(Exit::Signal(libc::SIGSYS));

#[test]
fn the_system_call_filter_ends_a_child_that_leaves_its_profile() {
    let prison = prison(Enforcement::Kill);
    let me = std::process::id().to_string();
    for (what, argument) in [
        ("connect", "127.0.0.1:1"),
        ("listen", "/x"),
        ("signal", &me),
        ("ptrace", &me),
        ("spawn", "/proc/self/exe"),
        ("become root", ""),
        ("mount", ""),
        ("unshare", ""),
        ("list", "/"),
    ] {
        let outcome = prison.attempt(what, argument);
        // Listing a folder opens it first, and that is refused.
        let expected = if what == "list" {
            Ok(Err("Operation not permitted (os error 1)".into()))
        } else {
            KILLED
        };
        assert_eq!(outcome, expected, "{what}");
    }
    for what in ["read", "write"] {
        let refused = prison.attempt(what, "/etc/passwd").unwrap().unwrap_err();
        assert_eq!(refused, "Operation not permitted (os error 1)", "{what}");
    }
    assert_eq!(prison.attempt("thread", ""), Ok(Ok("ran".into())));
}

/// With a filter that only logs, the other walls stand alone.
#[test]
fn the_other_walls_hold_without_the_filter() {
    let prison = prison(Enforcement::Log);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let me = std::process::id().to_string();
    let secret = prison.folder.path().join("secret");
    std::fs::write(&secret, "key").unwrap();
    for (what, argument) in [
        ("read", secret.to_str().unwrap()),
        ("read", "/etc/passwd"),
        ("read", "/proc/self/status"),
        ("list", "/"),
        ("write", "/x"),
        ("write", "/tmp/x"),
        ("connect", &address),
        ("listen", "/x"),
        ("signal", &me),
        ("signal", "-1"),
        ("ptrace", &me),
        ("become root", ""),
        ("mount", ""),
        ("spawn", "/proc/self/exe"),
        ("spawn", "/bin/true"),
    ] {
        let outcome = prison.attempt(what, argument);
        assert!(matches!(outcome, Ok(Err(_))), "{what} {argument}: {outcome:?}");
    }
    let user = prison.launcher.first_uid;
    assert_eq!(
        prison.attempt("who", ""),
        Ok(Ok(format!("{user} {user} 1"))),
        "its own user, and the only process it sees"
    );
}

#[test]
fn a_child_has_no_capabilities_and_namespaces_of_its_own() {
    let prison = prison(Enforcement::Kill);
    let folder = prison.folder.path().join("control.sock");
    let listener = process::control::bind(&folder).unwrap();
    let mut launched = prison
        .launcher
        .launch(&Launch {
            kind: "serve",
            main: |_| Ok(()),
            name: "serve-1".into(),
            spec: &(),
            descriptors: vec![("control", listener.as_fd())],
            profile: Profile::Basic,
            files: Files::default(),
            limits: Limits::default(),
            cgroup: Default::default(),
            oom_score_adj: 500,
            control: None,
            note: json!(null),
        })
        .unwrap();
    assert!(
        matches!(launched.connection.recv::<()>(), Err(Error::Closed)),
        "it needs the connection no more"
    );
    let pid = launched.task.pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|l| l.starts_with(name))
            .unwrap_or_else(|| panic!("{name}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Groups"), "");
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let link = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(link(&pid.to_string()), link("self"), "{namespace}");
    }
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_eq!(session.as_raw(), pid, "a session of its own");
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .unwrap()
            .trim(),
        "500"
    );
    let open: Vec<PathBuf> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(
        open.len(),
        4,
        "standard streams and the socket that it was given: {open:?}"
    );
    launched.task.kill().unwrap();
    assert_eq!(
        launched.task.wait(Some(Duration::from_secs(20))).unwrap(),
        Some(Exit::Signal(libc::SIGKILL))
    );
}

#[test]
fn a_child_sees_what_it_is_shown_and_cannot_change_it() {
    let prison = prison(Enforcement::Log);
    let own = prison.folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("file"), "content").unwrap();
    std::fs::set_permissions(
        own.join("file"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let files = Files {
        read_only: vec!["/etc/ld.so.cache".into(), "/bin".into()],
        folder: Some((own.clone(), "/guest".into())),
        devices: vec!["/dev/null".into()],
    };
    let attempt = |what: &str, argument: &str| prison.attempt_with(what, argument, files.clone()).unwrap();
    assert_eq!(attempt("read", "/guest/file"), Ok("content".into()));
    assert_eq!(attempt("list", "/guest"), Ok("file".into()));
    assert_eq!(attempt("write", "/dev/null"), Ok(String::new()));
    for path in ["/guest/file", "/guest/new", "/etc/ld.so.cache", "/new"] {
        assert!(attempt("write", path).is_err(), "{path}");
    }
    assert!(attempt("read", "/etc/passwd").is_err());
    assert_eq!(std::fs::read_to_string(own.join("file")).unwrap(), "content");
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_child_that_cannot_start_says_why_and_leaves_nothing() {
    let prison = prison(Enforcement::Kill);
    let launch = Launch {
        kind: "try",
        main: |_| Ok(()),
        name: "try-1".into(),
        spec: &json!("not an attempt"),
        descriptors: Vec::new(),
        profile: Profile::Basic,
        files: Files {
            devices: vec!["/dev/absent".into()],
            ..Files::default()
        },
        limits: Limits::default(),
        cgroup: Default::default(),
        oom_score_adj: 0,
        control: None,
        note: json!(null),
    };
    let error = prison.launcher.launch(&launch).unwrap_err().to_string();
    assert!(error.contains("opening what the jail shows"), "{error}");
    let launch = Launch {
        files: Files::default(),
        ..launch
    };
    let error = prison.launcher.launch(&launch).unwrap_err().to_string();
    assert_eq!(
        error,
        "'try' ended at its start by exit status 1; its log says more"
    );
    assert!(prison.launcher.runtime.list().unwrap().is_empty());
}

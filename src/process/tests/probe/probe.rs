//! A child for the tests. `try`: does one thing that its jail should forbid, and tells the result. `serve`: answers on
//! a control socket. `daemon`: starts a `serve` and waits to be killed, so that another process can adopt its child.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use process::child::{Isolation, Launch, Launcher, Runtime, Start, run};
use process::control::{Next, bind, serve};
use process::jail::{Files, Limits, Profile};
use serde::{Deserialize, Serialize};

/// One attempt to do what a jail forbids.
#[derive(Debug, Serialize, Deserialize)]
struct Attempt {
    what: String,
    argument: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "try"] => run(attempt),
        [_, "serve"] => run(serve_numbers),
        [_, "daemon", folder] => daemon(Path::new(folder)),
        _ => ExitCode::FAILURE,
    }
}

fn attempt(start: Start) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let attempt: Attempt = start.spec().map_err(|e| text(&e))?;
    let daemon = start.ready().map_err(|e| text(&e))?;
    let outcome = dare(&attempt.what, &attempt.argument);
    daemon.send(&outcome, &[]).map_err(|e| text(&e))
}

fn dare(what: &str, argument: &str) -> Result<String, String> {
    let process = || {
        argument
            .parse()
            .map(Pid::from_raw)
            .map_err(|_| "not a number".to_owned())
    };
    let done: std::io::Result<String> = match what {
        "nothing" => Ok(String::new()),
        "read" => std::fs::read_to_string(argument),
        "list" => std::fs::read_dir(argument).map(|entries| {
            let mut names: Vec<_> = entries
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names.join(" ")
        }),
        "write" => std::fs::write(argument, "x").map(|()| String::new()),
        "connect" => TcpStream::connect(argument).map(|_| String::new()),
        "listen" => UnixListener::bind(argument).map(|_| String::new()),
        "signal" => kill(process()?, Signal::SIGCONT)
            .map(|()| String::new())
            .map_err(Into::into),
        "ptrace" => nix::sys::ptrace::attach(process()?)
            .map(|()| String::new())
            .map_err(Into::into),
        "spawn" => std::process::Command::new(argument)
            .status()
            .map(|status| status.to_string()),
        "become root" => nix::unistd::setuid(0.into())
            .map(|()| String::new())
            .map_err(Into::into),
        "mount" => nix::mount::mount(
            Some("proc"),
            "/",
            Some("proc"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .map(|()| String::new())
        .map_err(Into::into),
        "unshare" => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)
            .map(|()| String::new())
            .map_err(Into::into),
        "thread" => Ok(std::thread::spawn(|| "ran".to_owned()).join().unwrap_or_default()),
        "who" => Ok(format!(
            "{} {} {}",
            nix::unistd::getuid(),
            nix::unistd::getgid(),
            nix::unistd::getpid()
        )),
        other => return Err(format!("cannot try '{other}'")),
    };
    done.map_err(|e| e.to_string())
}

/// Doubles numbers until it is asked to double 0. Number 1 is answered with its own process number.
fn serve_numbers(mut start: Start) -> Result<(), String> {
    let listener: UnixListener = start.take("control").map_err(|e| e.to_string())?;
    start.ready().map_err(|e| e.to_string())?;
    serve(&listener, |number: i64, _| match number {
        0 => (Ok(0), Next::End),
        n => (Ok(n * 2), Next::Continue),
    })
    .map_err(|e| e.to_string())
}

fn daemon(folder: &Path) -> ExitCode {
    let Ok(runtime) = Runtime::open(&folder.join("run")) else {
        return ExitCode::FAILURE;
    };
    let mut launcher = Launcher::new(Isolation::Process, runtime);
    launcher.logs = Some(folder.join("log"));
    let control = folder.join("control.sock");
    let Ok(listener) = bind(&control) else {
        return ExitCode::FAILURE;
    };
    let launched = launcher.launch(&Launch {
        kind: "serve",
        main: serve_numbers,
        name: "serve-1".into(),
        spec: &(),
        descriptors: vec![("control", std::os::fd::AsFd::as_fd(&listener))],
        profile: Profile::Basic,
        files: Files::default(),
        limits: Limits::default(),
        cgroup: Default::default(),
        oom_score_adj: 0,
        control: Some(control),
        note: serde_json::Value::Null,
    });
    match launched {
        Ok(_) => println!("ready"),
        Err(error) => println!("{error}"),
    }
    let _ = std::io::stdout().flush();
    // Until it is killed.
    loop {
        std::thread::park();
    }
}

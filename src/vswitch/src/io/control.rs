//! The control socket: requests of the daemon, passed on to the worker one at a time.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use model::net::{SwitchRequest, SwitchStatus};
use nix::sys::eventfd::EventFd;
use process::control::Next;

use super::Error;

/// What the worker answers.
pub(super) type Answer = Result<Option<SwitchStatus>, String>;

/// A request on its way to the worker.
#[derive(Debug)]
pub(super) struct Command {
    /// What is asked.
    pub request: SwitchRequest,
    /// The descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
    /// Where the answer goes.
    pub answer: Sender<Answer>,
}

/// The worker's end.
pub(super) type Commands = Receiver<Command>;

/// Answers the control socket until `Stop`.
pub(super) fn serve(
    listener: &UnixListener,
    worker: &SyncSender<Command>,
    wake: &EventFd,
) -> Result<(), Error> {
    let mut gone = false;
    process::control::serve(listener, |request: SwitchRequest, descriptors| {
        let next = if request == SwitchRequest::Stop {
            Next::End
        } else {
            Next::Continue
        };
        let answer = match ask(request, descriptors, worker, wake) {
            Some(answer) => answer,
            None => {
                gone = true;
                Err("the switch's worker has ended; the daemon starts a new switch".into())
            }
        };
        (answer, if gone { Next::End } else { next })
    })?;
    if gone { Err(Error::Worker) } else { Ok(()) }
}

/// `None`: the worker is gone.
fn ask(
    request: SwitchRequest,
    mut descriptors: Vec<OwnedFd>,
    worker: &SyncSender<Command>,
    wake: &EventFd,
) -> Option<Answer> {
    let wanted = usize::from(matches!(
        request,
        SwitchRequest::AddVhostUser { .. } | SwitchRequest::AddTap { .. }
    ));
    if descriptors.len() != wanted {
        return Some(Err(format!(
            "this request takes {wanted} descriptors, and {} came",
            descriptors.len()
        )));
    }
    if request == SwitchRequest::Stop {
        return Some(Ok(None));
    }
    let (answer, answered) = std::sync::mpsc::channel();
    worker
        .send(Command {
            request,
            descriptor: descriptors.pop(),
            answer,
        })
        .ok()?;
    wake.write(1).ok()?;
    answered.recv().ok()
}

//! What a guest asks of its machine.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::cpu::gate::Gate;

/// What a guest asks of its machine, through a device or a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Start anew.
    Reset,
    /// Switch off.
    PowerOff,
    /// It cannot go on, and why.
    Fail(String),
}

/// A request, and the boot in which it was made.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) boot: u64,
}

/// For devices: the way to the machine's driver. At most one request of each vCPU is on its way, since asking closes
/// the gate.
#[derive(Clone)]
pub(super) struct Requests {
    gate: Arc<Gate>,
    send: Sender<super::machine::Message>,
}

impl Requests {
    /// Over this gate to this driver.
    pub(super) fn new(gate: Arc<Gate>, send: Sender<super::machine::Message>) -> Self {
        Requests { gate, send }
    }

    /// Ask. The vCPU that asks executes nothing more until the driver has answered.
    pub(super) fn ask(&self, request: Request) {
        let boot = self.gate.ask();
        // Without a driver the machine ends anyway.
        let _ = self
            .send
            .send(super::machine::Message::Guest(Asked { request, boot }));
    }
}

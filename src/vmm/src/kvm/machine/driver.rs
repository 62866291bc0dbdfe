//! The thread that owns a machine's state.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use kvm_bindings::kvm_clock_data;
use model::machine::StopMode;

use super::build::{Parts, kvm};
use super::{Board, Control, Ending, MachineError, Message, State};
use crate::kvm::request::{Asked, Request};
use crate::kvm::virtio::Device;

pub(super) struct Driver {
    parts: Option<Parts>,
    board: Arc<Board>,
    state: State,
    /// When a graceful stop becomes a hard one.
    deadline: Option<Instant>,
    /// The guest's clock when it was paused.
    clock: Option<kvm_clock_data>,
}

impl Driver {
    pub(super) fn new(parts: Parts, board: Arc<Board>) -> Self {
        Driver {
            parts: Some(parts),
            board,
            state: State::Created,
            deadline: None,
            clock: None,
        }
    }

    /// Until the machine has ended and nobody can ask any more.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let message = match self.deadline {
                Some(deadline) => messages.recv_timeout(deadline.saturating_duration_since(Instant::now())),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Control(control, answer)) => {
                    // Who asked may have gone.
                    let _ = answer.send(self.obey(control));
                }
                Ok(Message::Guest(asked)) => self.answer(asked),
                Err(RecvTimeoutError::Timeout) => self.end(Ending::Stopped),
                Err(RecvTimeoutError::Disconnected) => return self.end(Ending::Stopped),
            }
        }
    }

    fn obey(&mut self, control: Control) -> Result<(), MachineError> {
        match (control, &self.state) {
            (Control::Resize { disk, bytes }, State::Created | State::Running | State::Paused) => {
                let found = self.parts()?.disks.iter().find(|other| other.name() == disk);
                if found.is_some_and(|found| found.resize(bytes)) {
                    Ok(())
                } else {
                    Err(MachineError::Resize { disk, bytes })
                }
            }
            (Control::Limit { disk, limits }, State::Created | State::Running | State::Paused) => {
                let found = self.parts()?.disks.iter().find(|other| other.name() == disk);
                if found.is_some_and(|found| found.limit(&limits)) {
                    Ok(())
                } else {
                    Err(MachineError::Limit { disk })
                }
            }
            (Control::Balloon { mib }, State::Created | State::Running | State::Paused) => {
                let balloon = self.parts()?.balloon.as_ref();
                if balloon.is_some_and(|balloon| balloon.aim(mib)) {
                    Ok(())
                } else {
                    Err(MachineError::Balloon { mib })
                }
            }
            (Control::Start, State::Created) => self.or_fail(Self::start),
            (Control::Pause, State::Running) => self.pause(),
            (Control::Pause, State::Paused) => Ok(()),
            (Control::Resume, State::Paused) => self.resume(),
            (Control::Resume, State::Running) => Ok(()),
            (Control::Reset, State::Running | State::Paused) => self.or_fail(Self::reset),
            (Control::Stop(_), State::Ended(_)) => Ok(()),
            (Control::Stop(StopMode::Hard), _) | (Control::Stop(_), State::Created) => {
                self.end(Ending::Stopped);
                Ok(())
            }
            (Control::Stop(StopMode::Graceful(time)), state) => {
                if *state == State::Paused {
                    self.resume()?;
                }
                let deadline = Instant::now().checked_add(time);
                // Asked twice, the sooner end counts.
                self.deadline = match (self.deadline, deadline) {
                    (Some(old), Some(new)) => Some(old.min(new)),
                    (old, new) => old.or(new),
                };
                self.parts()?.power.press();
                Ok(())
            }
            (_, state) => Err(MachineError::State(state.clone())),
        }
    }

    fn answer(&mut self, Asked { request, boot }: Asked) {
        let Some(parts) = &self.parts else { return };
        if boot != parts.gate.boot() {
            return;
        }
        match request {
            Request::PowerOff => self.end(Ending::PoweredOff),
            Request::Fail(why) => {
                tracing::warn!(why, "the guest cannot go on");
                self.end(Ending::Failed(why));
            }
            Request::Reset => {
                if let Err(error) = self.or_fail(Self::reset) {
                    tracing::warn!(%error, "the guest's reset failed");
                }
            }
        }
    }

    fn parts(&self) -> Result<&Parts, MachineError> {
        self.parts.as_ref().ok_or(MachineError::Gone)
    }

    /// Do it, or end the machine.
    fn or_fail(&mut self, does: fn(&mut Self) -> Result<(), MachineError>) -> Result<(), MachineError> {
        let result = does(self);
        if let Err(error) = &result {
            self.end(Ending::Failed(error.to_string()));
        }
        result
    }

    fn become_(&mut self, state: State) {
        self.state = state.clone();
        self.board.update(|status| status.state = state);
    }

    /// Load the kernel or the firmware, and set the boot processor's registers.
    fn load(&self) -> Result<(), MachineError> {
        let parts = self.parts()?;
        let count = u32::try_from(parts.vcpus.len()).unwrap_or(u32::MAX);
        let start = parts.boot.load(&parts.ram, count)?;
        if let Some(vcpu) = parts.vcpus.first() {
            start
                .prepare(&vcpu.fd())
                .map_err(kvm("cannot set the boot processor's registers"))?;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), MachineError> {
        self.load()?;
        let parts = self.parts()?;
        parts.devices.iter().for_each(|device| device.start());
        parts.gate.open();
        self.become_(State::Running);
        Ok(())
    }

    /// Let all vCPUs stand still.
    fn halt(parts: &Parts) {
        parts
            .gate
            .close(|| parts.vcpus.iter().for_each(|vcpu| vcpu.kick()));
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        let parts = self.parts()?;
        Self::halt(parts);
        parts.devices.iter().for_each(|device| device.pause());
        if parts.clock_adjusts {
            self.clock = parts
                .vm
                .get_clock()
                .inspect_err(|error| tracing::warn!(%error, "cannot read the guest's clock"))
                .ok();
        }
        self.become_(State::Paused);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        let clock = self.clock.take();
        let parts = self.parts()?;
        if let Some(clock) = clock {
            // The guest's clock stood still with it: its timers do not all fire at once. Flags ask for more than that.
            let clock = kvm_clock_data {
                clock: clock.clock,
                ..kvm_clock_data::default()
            };
            if let Err(error) = parts.vm.set_clock(&clock) {
                tracing::warn!(%error, "cannot set the guest's clock");
            }
        }
        for vcpu in &parts.vcpus {
            // A guest without such a clock answers EINVAL.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        parts.devices.iter().for_each(|device| device.resume());
        parts.gate.open();
        self.become_(State::Running);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), MachineError> {
        let parts = self.parts()?;
        Self::halt(parts);
        parts.devices.iter().for_each(|device| device.reset());
        parts.ram.clear()?;
        for (vcpu, first) in parts.vcpus.iter().zip(&parts.first) {
            first
                .write(&vcpu.fd())
                .map_err(kvm("cannot reset a virtual processor"))?;
        }
        parts
            .chips
            .write(&parts.vm)
            .map_err(kvm("cannot reset the interrupt controllers"))?;
        self.load()?;
        let parts = self.parts()?;
        parts.gate.next_boot();
        self.board.update(|status| status.resets += 1);
        if self.state == State::Running {
            parts.gate.open();
        }
        Ok(())
    }

    fn end(&mut self, ending: Ending) {
        let Some(parts) = self.parts.take() else { return };
        self.deadline = None;
        parts.gate.end();
        Self::halt(&parts);
        parts.devices.iter().for_each(|device| device.halt());
        // The vCPUs' threads, KVM's machine, the memory; and the console writes its last.
        drop(parts);
        self.become_(State::Ended(ending));
    }
}

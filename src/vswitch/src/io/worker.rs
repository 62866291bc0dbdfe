//! The thread that moves packets.
//!
//! Each round: take what epoll says; then for every device that has something, one bounded batch; then wake those who
//! received. While there is work, epoll is only asked, not waited for. When there is none, guests are asked to kick
//! again, and the thread sleeps until a descriptor or the switch's own next moment wakes it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use model::net::{SwitchRequest, SwitchStatus, TapTarget};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use uuid::Uuid;

use super::Error;
use super::control::{Answer, Command, Commands};
use super::tap::{self, Tap};
use super::vhost::{self, Vhost};
use crate::frame::Frame;
use crate::{Effects, Now, Place, Switch};

/// Frames of one device in one round.
const BATCH: usize = 64;
/// Messages of one frontend in one round.
const MESSAGES: usize = 16;
/// How long an empty ring is polled before the guest is asked to kick again.
const GRACE: Duration = Duration::from_micros(30);

/// What a device is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Port(Uuid),
    Uplink(String),
}

#[derive(Debug)]
enum Kind {
    Tap(Tap),
    Vhost(Box<Vhost>),
}

#[derive(Debug)]
struct Device {
    key: Key,
    place: Option<Place>,
    kind: Kind,
    /// It may have frames.
    ready: bool,
    /// Since when it had none, while it is still polled.
    empty_since: Option<Instant>,
}

/// What a descriptor in epoll belongs to: the low byte of its number, beside the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Wake,
    Tap,
    Listener,
    Socket,
    Kick,
}

impl Source {
    fn token(self, device: usize) -> u64 {
        (device as u64) << 8 | self as u64
    }

    fn of(token: u64) -> Option<(Source, usize)> {
        let all = [
            Source::Wake,
            Source::Tap,
            Source::Listener,
            Source::Socket,
            Source::Kick,
        ];
        all.into_iter()
            .find(|source| *source as u64 == token & 0xff)
            .map(|source| (source, (token >> 8) as usize))
    }
}

/// The switch with its descriptors.
#[derive(Debug)]
pub(super) struct Worker {
    switch: Switch,
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Commands,
    devices: Vec<Option<Device>>,
    places: BTreeMap<Place, usize>,
    /// Devices that received something in this round.
    touched: Vec<usize>,
    effects: Effects,
    began: Instant,
}

impl Worker {
    pub fn new(wake: Arc<EventFd>, commands: Commands) -> Result<Self, Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, Source::Wake.token(0)))?;
        Ok(Self {
            switch: Switch::new(seed()),
            epoll,
            wake,
            commands,
            devices: Vec::new(),
            places: BTreeMap::new(),
            touched: Vec::new(),
            effects: Effects::default(),
            began: Instant::now(),
        })
    }

    /// Works until nobody can send commands any more.
    pub fn run(mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let timeout = self.timeout();
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..count] {
                if let Some((source, device)) = Source::of(event.data())
                    && !self.attend(source, device)
                {
                    return Ok(());
                }
            }
            for index in 0..self.devices.len() {
                if self.devices[index].as_ref().is_some_and(|device| device.ready) {
                    self.work(index);
                }
            }
            let now = self.now();
            if self.switch.next_tick().is_some_and(|due| due <= now) {
                self.switch.tick(now, &mut self.effects);
                self.carry_out();
            }
            self.flush();
        }
    }

    fn now(&self) -> Now {
        self.began.elapsed()
    }

    fn timeout(&self) -> EpollTimeout {
        if self.devices.iter().flatten().any(|device| device.ready) {
            return EpollTimeout::ZERO;
        }
        let Some(due) = self.switch.next_tick() else {
            return EpollTimeout::NONE;
        };
        let wait = due.saturating_sub(self.now());
        // Rounded up, so that nothing spins towards the end; long waits are taken in parts.
        let millis = wait.as_micros().div_ceil(1000).min(60_000);
        EpollTimeout::try_from(i32::try_from(millis).unwrap_or(60_000)).unwrap_or(EpollTimeout::ZERO)
    }

    /// A descriptor is ready. `false`: it is time to end.
    fn attend(&mut self, source: Source, index: usize) -> bool {
        if source == Source::Wake {
            // Its counter only says that a command waits.
            let _ = self.wake.read();
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
        }
        let Some(Some(device)) = self.devices.get_mut(index) else {
            return true;
        };
        let (ready, kind) = (&mut device.ready, &mut device.kind);
        match (source, kind) {
            (Source::Tap, Kind::Tap(_)) => *ready = true,
            (Source::Kick, Kind::Vhost(vhost)) => {
                *ready = true;
                vhost.wake();
            }
            (Source::Listener, Kind::Vhost(_)) => self.accept(index),
            (Source::Socket, Kind::Vhost(_)) => self.converse(index),
            _ => {}
        }
        true
    }

    fn accept(&mut self, index: usize) {
        let Some(Some(Device {
            kind: Kind::Vhost(vhost),
            key,
            ..
        })) = self.devices.get_mut(index)
        else {
            return;
        };
        match vhost.accept() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return tracing::warn!(?key, %error, "a guest's connection was refused"),
        }
        // One guest at a time: the next one waits until this one is gone.
        let _ = self.epoll.delete(vhost.listener());
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Socket.token(index));
        if let Some(socket) = vhost.socket()
            && let Err(error) = self.epoll.add(socket, event)
        {
            tracing::warn!(?key, %error, "a guest's connection cannot be watched");
            self.hang_up(index);
        } else {
            tracing::info!(?key, "a guest connected");
        }
    }

    fn converse(&mut self, index: usize) {
        let Some(Some(Device {
            kind: Kind::Vhost(vhost),
            key,
            ready,
            ..
        })) = self.devices.get_mut(index)
        else {
            return;
        };
        // The frontend keeps copies of its descriptors: one that we closed would stay in epoll for ever.
        unwatch_kicks(&self.epoll, vhost);
        if let Err(error) = vhost.converse(MESSAGES) {
            tracing::info!(?key, %error, "a guest disconnected");
            return self.hang_up(index);
        }
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let mut kicks = false;
        for pair in 0..vhost::PAIRS {
            let Some(kick) = vhost.kick(pair) else { continue };
            let event = EpollEvent::new(edge, Source::Kick.token(index));
            match self.epoll.add(kick, event) {
                // One descriptor for several rings is watched once, for all of them.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => tracing::warn!(?key, %error, "a guest's kicks cannot be watched"),
            }
            kicks = true;
        }
        if kicks {
            vhost.wake();
            *ready = true;
        }
    }

    fn hang_up(&mut self, index: usize) {
        let Some(Some(Device {
            kind: Kind::Vhost(vhost),
            key,
            ready,
            ..
        })) = self.devices.get_mut(index)
        else {
            return;
        };
        unwatch_kicks(&self.epoll, vhost);
        if let Some(socket) = vhost.socket() {
            let _ = self.epoll.delete(socket);
        }
        vhost.disconnect();
        *ready = false;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Listener.token(index));
        if let Err(error) = self.epoll.add(vhost.listener(), event) {
            tracing::warn!(?key, %error, "a guest's socket cannot be watched");
        }
    }

    /// One batch of a device.
    fn work(&mut self, index: usize) {
        for count in 0..BATCH {
            let Some(Some(device)) = self.devices.get_mut(index) else {
                return;
            };
            let frame = match &mut device.kind {
                Kind::Tap(tap) => match tap.read() {
                    tap::Read::Frame(frame) => Some(frame),
                    tap::Read::Nonsense => None,
                    tap::Read::Empty => {
                        device.ready = false;
                        break;
                    }
                    tap::Read::Gone => {
                        tracing::warn!(key = ?device.key, "a TAP is gone");
                        self.remove(index);
                        return;
                    }
                },
                Kind::Vhost(vhost) => match vhost.read() {
                    vhost::Read::Frame(frame) => Some(frame),
                    vhost::Read::Nonsense => None,
                    vhost::Read::Empty => {
                        let since = *device.empty_since.get_or_insert_with(Instant::now);
                        if count > 0 {
                            device.empty_since = Some(Instant::now());
                        } else if since.elapsed() > GRACE && !vhost.sleep() {
                            device.ready = false;
                            device.empty_since = None;
                        }
                        break;
                    }
                },
            };
            match (device.place, frame) {
                (Some(place), Some(frame)) => {
                    let now = self.began.elapsed();
                    self.switch.input(place, frame, now, &mut self.effects);
                    self.carry_out();
                }
                (_, None) => self.switch.not_understood(),
                (None, Some(_)) => {}
            }
        }
        if !self.touched.contains(&index) {
            self.touched.push(index);
        }
    }

    /// Sends what the switch wants sent.
    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for (place, frame) in effects.frames.drain(..) {
            self.send(place, frame);
        }
        self.effects = effects;
    }

    fn send(&mut self, place: Place, frame: Frame) {
        let length = frame.bytes.len();
        let index = self.places.get(&place).copied();
        let device = index
            .and_then(|index| self.devices.get_mut(index))
            .and_then(Option::as_mut);
        let sent = match device.map(|device| &mut device.kind) {
            Some(Kind::Tap(tap)) => tap.write(frame),
            Some(Kind::Vhost(vhost)) => {
                if let Some(index) = index.filter(|index| !self.touched.contains(index)) {
                    self.touched.push(index);
                }
                vhost.write(frame)
            }
            None => false,
        };
        if !sent {
            self.switch.not_received(place, length);
        }
    }

    fn flush(&mut self) {
        for index in self.touched.drain(..) {
            if let Some(Some(Device {
                kind: Kind::Vhost(vhost),
                ..
            })) = self.devices.get_mut(index)
            {
                vhost.flush();
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let answer = self.answer(command.request, command.descriptor);
        // Whoever asked may be gone.
        drop(command.answer.send(answer));
    }

    fn answer(&mut self, request: SwitchRequest, descriptor: Option<OwnedFd>) -> Answer {
        match request {
            SwitchRequest::Apply(tables) => {
                let now = self.now();
                if !self.switch.apply(&tables, now) {
                    return Err(format!(
                        "generation {} is older than the one in force",
                        tables.generation
                    ));
                }
                self.place_devices();
                Ok(None)
            }
            SwitchRequest::AddVhostUser { port } => {
                let vhost = Vhost::new(descriptor.ok_or("a listening socket is missing")?)?;
                self.insert(Key::Port(port), Kind::Vhost(Box::new(vhost)))
            }
            SwitchRequest::RemoveVhostUser { port } => {
                self.remove_key(&Key::Port(port));
                Ok(None)
            }
            SwitchRequest::AddTap { target } => {
                let tap = Tap::new(descriptor.ok_or("a TAP is missing")?)?;
                let key = match target {
                    TapTarget::Uplink(name) => Key::Uplink(name),
                    TapTarget::Port(port) => Key::Port(port),
                };
                self.insert(key, Kind::Tap(tap))
            }
            SwitchRequest::Status => Ok(Some(self.status())),
            SwitchRequest::Stop => Ok(None), // The control thread ends us by hanging up.
        }
    }

    fn insert(&mut self, key: Key, kind: Kind) -> Answer {
        self.remove_key(&key);
        let index = self.devices.iter().position(Option::is_none).unwrap_or_else(|| {
            self.devices.push(None);
            self.devices.len() - 1
        });
        let (fd, source): (BorrowedFd<'_>, Source) = match &kind {
            Kind::Tap(tap) => (tap.as_fd(), Source::Tap),
            Kind::Vhost(vhost) => (vhost.listener(), Source::Listener),
        };
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.token(index)))
            .map_err(|error| format!("the descriptor cannot be watched: {error}"))?;
        self.devices[index] = Some(Device {
            key,
            place: None,
            kind,
            ready: false,
            empty_since: None,
        });
        self.place_devices();
        Ok(None)
    }

    fn remove_key(&mut self, key: &Key) {
        let has = |device: &Option<Device>| device.as_ref().is_some_and(|device| device.key == *key);
        if let Some(index) = self.devices.iter().position(has) {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        let Some(device) = self.devices.get_mut(index).and_then(Option::take) else {
            return;
        };
        match device.kind {
            Kind::Tap(tap) => drop(self.epoll.delete(tap.as_fd())),
            Kind::Vhost(mut vhost) => {
                let _ = self.epoll.delete(vhost.listener());
                unwatch_kicks(&self.epoll, &mut vhost);
                if let Some(socket) = vhost.socket() {
                    let _ = self.epoll.delete(socket);
                }
            }
        }
        if let Some(place) = device.place {
            self.places.remove(&place);
        }
    }

    /// Finds the slots of all devices again; those whose port has left the tables go.
    fn place_devices(&mut self) {
        self.places.clear();
        let mut gone = Vec::new();
        for (index, device) in self.devices.iter_mut().enumerate() {
            let Some(device) = device else { continue };
            let place = match &device.key {
                Key::Port(port) => self.switch.port(*port),
                Key::Uplink(name) => self.switch.uplink(name),
            };
            if place.is_none() && device.place.is_some() {
                gone.push(index);
            }
            device.place = place;
            if let Some(place) = place {
                self.places.insert(place, index);
            }
        }
        for index in gone {
            self.remove(index);
        }
    }

    fn status(&self) -> SwitchStatus {
        let mut status = self.switch.status();
        for device in self.devices.iter().flatten() {
            match (&device.key, &device.kind) {
                (Key::Port(port), Kind::Vhost(vhost)) => {
                    status.vhost_user.insert(*port, vhost.connected());
                }
                (Key::Uplink(name), _) => status.uplinks.push(name.clone()),
                (Key::Port(_), Kind::Tap(_)) => {}
            }
        }
        status
    }
}

fn unwatch_kicks(epoll: &Epoll, vhost: &mut Vhost) {
    for pair in 0..vhost::PAIRS {
        if let Some(kick) = vhost.kick(pair) {
            let _ = epoll.delete(kick);
        }
    }
}

/// An unpredictable number; the kernel's randomness by way of the standard library's hash keys.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

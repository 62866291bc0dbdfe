//! The network device (virtio 1.2 §5.1). Its packets go between the guest and a vhost-user backend, the switch: KVM rings the
//! eventfd that the backend watches, and the backend signals the one that KVM takes for an interrupt. Here are the
//! configuration, the control queue, and the [`link`] that finds the backend and tells it where the rings are.
//!
//! The backend may be absent, die and come back at any time; the guest loses packets at most.

mod control;
mod link;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use model::net::MacAddr;
use serde_json::Value;
use virtio::vhost_user::frontend;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use self::control::Control;
use self::link::{Link, Patience, Ring, Traffic};
use super::worker::Post;
use super::{Device, Left, Session, SessionQueue, StartError};
use crate::kvm::lifecycle::StateError;

/// The device's type (§5).
const DEVICE_ID: u16 = 1;
/// Descriptors of a ring for packets.
const QUEUE_SIZE: u16 = 256;
/// Descriptors of the control queue, of whose requests there is one at a time.
const CONTROL_SIZE: u16 = 64;
/// The most pairs of queues; a backend knows at most 256 rings.
pub const MAX_QUEUE_PAIRS: u16 = 64;
/// The least MTU (§5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// Status: the link is up (§5.1.4).
const LINK_UP: u16 = 1;

/// Feature bits (§5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const GUEST_UFO: u64 = 1 << 10;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const HOST_UFO: u64 = 1 << 14;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const MQ: u64 = 1 << 22;

    /// What is done in this process, whatever the backend is.
    pub(super) const OURS: u64 = MAC | MTU | STATUS | CTRL_VQ | MQ;
    /// What our switch does with packets; offered while no backend could be asked.
    pub(super) const SWITCH: u64 =
        CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MRG_RXBUF;
    /// What a backend does with packets that needs nothing of us.
    pub(super) const PACKETS: u64 = SWITCH | GUEST_ECN | GUEST_UFO | HOST_ECN | HOST_UFO;
}

/// How a NIC reaches its backend. Called again whenever there is no connection, and must not wait.
pub type Connect = Box<dyn Fn() -> io::Result<UnixStream> + Send>;

/// A network interface of a machine.
pub struct Nic {
    /// Its name in the machine, unique among devices.
    pub name: String,
    /// Its address.
    pub mac: MacAddr,
    /// The largest packet that its network takes, from [`MIN_MTU`] on.
    pub mtu: u16,
    /// The most pairs of queues, 1 to [`MAX_QUEUE_PAIRS`]. A backend that is there when the machine is made, and offers
    /// fewer, has the last word.
    pub queue_pairs: u16,
    /// The way to its backend.
    pub connect: Connect,
}

impl Nic {
    /// The way to the backend that listens at this path.
    pub fn at(path: PathBuf) -> Connect {
        Box::new(move || frontend::connect(&path).map_err(Into::into))
    }

    /// Whether there can be such a NIC.
    pub(in crate::kvm) fn is_sound(&self) -> bool {
        self.mtu >= MIN_MTU && (1..=MAX_QUEUE_PAIRS).contains(&self.queue_pairs)
    }
}

impl std::fmt::Debug for Nic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nic")
            .field("name", &self.name)
            .field("mac", &self.mac)
            .field("mtu", &self.mtu)
            .field("queue_pairs", &self.queue_pairs)
            .finish_non_exhaustive()
    }
}

/// How a NIC is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NicStatus {
    /// Its backend is there.
    pub connected: bool,
    /// The guest sees a link.
    pub link_up: bool,
    /// How often a backend was found.
    pub connections: u64,
    /// Why there is no backend, if it was tried.
    pub trouble: Option<String>,
}

/// The device.
pub(in crate::kvm) struct NetDevice {
    name: String,
    mac: MacAddr,
    mtu: u16,
    /// Pairs of queues that there are.
    most: u16,
    /// Pairs that the driver wants to use; 1 until it says so.
    pairs: Arc<AtomicU16>,
    link: Arc<Link>,
    control: Post<Control>,
}

impl NetDevice {
    /// A device for this NIC. Its backend is asked what it offers, but not waited for.
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::kvm) fn new(nic: Nic) -> io::Result<Self> {
        Self::with_patience(nic, Patience::default())
    }

    fn with_patience(nic: Nic, patience: Patience) -> io::Result<Self> {
        let (link, rings) = Link::start(&nic.name, nic.connect, patience)?;
        let link = Arc::new(link);
        let most = rings.map_or(nic.queue_pairs, |rings| nic.queue_pairs.min(rings / 2).max(1));
        let pairs = Arc::new(AtomicU16::new(1));
        Ok(NetDevice {
            control: Post::new(&nic.name, Control::new(link.clone(), pairs.clone(), most)),
            name: nic.name,
            mac: nic.mac,
            mtu: nic.mtu,
            most,
            pairs,
            link,
        })
    }

    /// How it is.
    pub(in crate::kvm) fn status(&self) -> NicStatus {
        self.link.status()
    }

    /// The control queue's number: behind those of all pairs that the driver knows of (§5.1.2).
    fn control_queue(&self, features: u64) -> Option<usize> {
        (features & feature::CTRL_VQ != 0).then(|| 2 * usize::from(self.known_pairs(features)))
    }

    fn known_pairs(&self, features: u64) -> u16 {
        if features & feature::MQ != 0 { self.most } else { 1 }
    }
}

impl Device for NetDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> u16 {
        DEVICE_ID
    }

    /// An Ethernet controller.
    fn class(&self) -> u32 {
        0x02_0000
    }

    fn features(&self) -> u64 {
        let packets = self.link.offered().unwrap_or(feature::SWITCH) & feature::PACKETS;
        let several = if self.most > 1 {
            feature::MQ | feature::CTRL_VQ
        } else {
            0
        };
        packets | several | feature::MAC | feature::MTU | feature::STATUS
    }

    fn queues(&self) -> Vec<u16> {
        let mut queues = vec![QUEUE_SIZE; 2 * usize::from(self.most)];
        if self.most > 1 {
            queues.push(CONTROL_SIZE);
        }
        queues
    }

    /// `struct virtio_net_config` up to `mtu` (§5.1.4).
    fn config(&self) -> Vec<u8> {
        let status = if self.link.status().link_up { LINK_UP } else { 0 };
        let words = [status, self.most, self.mtu].map(u16::to_le_bytes);
        [&self.mac.0[..], words.as_flattened()].concat()
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session {
            memory,
            queues,
            features,
            alarm,
        } = session;
        if memory.iter().any(|region| region.file_offset().is_none()) {
            return Err(io::Error::other("the guest's memory cannot be shared").into());
        }
        let control = self.control_queue(features);
        let mut rings = Vec::new();
        let mut requests: Option<SessionQueue> = None;
        for (index, queue) in (0..).zip(queues) {
            if Some(usize::from(index)) == control {
                requests = Some(queue);
            } else if index < 2 * self.known_pairs(features)
                && let Some(placement) = queue.placement
            {
                let used = placement.used_index(queue.max, &memory)?;
                rings.push(Ring::new(index, queue, placement, used));
            }
        }
        self.link.serve(Traffic {
            memory: memory.clone(),
            features,
            rings,
            pairs: self.pairs.load(Ordering::SeqCst).min(self.known_pairs(features)),
            alarm: alarm.try_clone()?,
        });
        let Some(queue) = requests else { return Ok(()) };
        let started = self.control.start(Session {
            memory,
            queues: vec![queue],
            features,
            alarm,
        });
        if started.is_err() {
            self.link.halt();
        }
        started
    }

    fn stop(&self) -> Vec<Left> {
        let control = self.control.stop().pop();
        let Some((features, bases)) = self.link.halt() else {
            return Vec::new();
        };
        let mut left = vec![Left::default(); self.queues().len()];
        let found = bases.into_iter().map(|(index, next)| {
            let taken = Vec::new();
            (usize::from(index), Left { next, taken })
        });
        for (index, this) in found.chain(self.control_queue(features).zip(control)) {
            if let Some(place) = left.get_mut(index) {
                *place = this;
            }
        }
        left
    }

    fn reset(&self) {
        self.pairs.store(1, Ordering::SeqCst);
    }

    fn save(&self) -> Value {
        self.pairs.load(Ordering::SeqCst).into()
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let pairs = state.as_u64().and_then(|pairs| u16::try_from(pairs).ok());
        match pairs.filter(|pairs| (1..=self.most).contains(pairs)) {
            Some(pairs) => {
                self.pairs.store(pairs, Ordering::SeqCst);
                Ok(())
            }
            None => Err(StateError::Malformed(format!("{state} pairs of queues"))),
        }
    }
}

#[cfg(test)]
mod tests;

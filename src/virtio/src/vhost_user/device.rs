//! What a frontend sets up: features, memory and rings. The `vhost` crate parses its messages and calls us.

use std::{fs::File, sync::Arc};

use vhost::vhost_user::{
    Backend, Error as Fault, GpuBackend, Result, VhostUserBackendReqHandlerMut,
    VhostUserProtocolFeatures as Protocol,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
        VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
        VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
    },
};

use crate::{
    feature,
    inflight::{InflightQueue, InflightRecord, InflightShape},
    memory::{MAX_REGIONS, MemoryLimits, MemoryTable, RegionSpec},
    vring::{RingAddresses, Vring},
};

/// What a device offers to frontends.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Feature bits of the device type. `VERSION_1`, `INDIRECT_DESC`, `EVENT_IDX` and the protocol's own bit are added.
    pub features: u64,
    /// Rings, 1 to 256.
    pub queues: u16,
    /// The most descriptors of a ring: a power of two.
    pub queue_size: u16,
    /// The device's configuration space; empty: not offered (QEMU keeps a network device's by itself).
    pub config: Vec<u8>,
    /// Bytes of the configuration space that the guest may write, as `(offset, length)`.
    pub writable_config: Option<(u32, u32)>,
    /// Keep a record of requests in flight.
    pub inflight: bool,
    /// Buffers are used in the order in which they are available: rings start at the used ring's index.
    pub in_order: bool,
    /// Accept guest memory only from files that cannot shrink. Needed by whoever serves several guests.
    pub sealed_memory: bool,
    /// The most guest memory in bytes.
    pub max_memory: u64,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            features: 0,
            queues: 1,
            queue_size: 256,
            config: Vec::new(),
            writable_config: None,
            inflight: false,
            in_order: false,
            sealed_memory: true,
            max_memory: 1 << 44,
        }
    }
}

/// What a request changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing that the owner must act on.
    Other,
    /// The ring started, was enabled or disabled, or has other notification descriptors: look at it.
    Ring(u16),
    /// The ring stopped; its kick descriptor is closed.
    Stopped(u16),
    /// The memory table changed. Ask for it anew; an `Arc` of the old one stays valid while requests use it.
    Memory,
    /// The guest wrote to the configuration space.
    Config {
        /// First byte.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// All rings are stopped and forgotten.
    Reset,
}

/// The state of the device's side of one connection.
pub(super) struct Device {
    pub(super) offer: Offer,
    pub(super) features: u64,
    pub(super) protocol: Protocol,
    pub(super) memory: MemoryTable,
    pub(super) rings: Vec<Vring>,
    pub(super) record: Option<InflightRecord>,
    /// Per ring: its record, and the requests that a predecessor left.
    pub(super) inflight: Vec<Option<InflightQueue>>,
    pub(super) recovered: Vec<Vec<u16>>,
    pub(super) event: Event,
}

impl Device {
    pub(super) fn new(offer: Offer) -> std::result::Result<Self, super::Error> {
        if offer.queues == 0 || offer.queues > 256 {
            return Err(super::Error::Offer);
        }
        let limits = MemoryLimits {
            sealed: offer.sealed_memory,
            max_bytes: offer.max_memory,
        };
        let rings = (0..offer.queues)
            .map(|_| Vring::new(offer.queue_size))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let count = usize::from(offer.queues);
        Ok(Self {
            offer,
            features: 0,
            protocol: Protocol::empty(),
            memory: MemoryTable::new(limits),
            rings,
            record: None,
            inflight: std::iter::repeat_with(|| None).take(count).collect(),
            recovered: vec![Vec::new(); count],
            event: Event::Other,
        })
    }

    /// Stands in the handler's place while the owner has the real one.
    pub(super) fn placeholder() -> Self {
        Self {
            offer: Offer::default(),
            features: 0,
            protocol: Protocol::empty(),
            memory: MemoryTable::new(MemoryLimits {
                sealed: true,
                max_bytes: 0,
            }),
            rings: Vec::new(),
            record: None,
            inflight: Vec::new(),
            recovered: Vec::new(),
            event: Event::Other,
        }
    }

    fn offered_features(&self) -> u64 {
        self.offer.features
            | feature::VERSION_1
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::PROTOCOL_FEATURES
    }

    fn offered_protocol(&self) -> Protocol {
        let mut offered =
            Protocol::MQ | Protocol::REPLY_ACK | Protocol::RESET_DEVICE | Protocol::CONFIGURE_MEM_SLOTS;
        if !self.offer.config.is_empty() {
            offered |= Protocol::CONFIG | Protocol::BACKEND_REQ;
        }
        if self.offer.inflight {
            offered |= Protocol::INFLIGHT_SHMFD;
        }
        offered
    }

    fn ring(&mut self, index: u32) -> Result<&mut Vring> {
        usize::try_from(index)
            .ok()
            .and_then(|i| self.rings.get_mut(i))
            .ok_or(Fault::InvalidParam)
    }

    fn ring_event(&mut self, index: u32) {
        // `ring` has checked the index against `Offer::queues`.
        self.event = Event::Ring(index as u16);
    }

    fn start(&mut self, index: u32) -> Result<()> {
        let i = index as usize;
        let memory = Arc::clone(self.memory.memory());
        let ring = self.rings.get_mut(i).ok_or(Fault::InvalidParam)?;
        ring.resolve(&self.memory).map_err(fault)?;
        let used = ring.used_index(&memory).map_err(fault)?;
        let mut resume = self.offer.in_order.then_some(used);
        if let Some(mut queue) = self.record.as_ref().and_then(|r| r.queue(index as u16)) {
            let left = queue.recover(used, ring.size()).map_err(fault)?;
            // At most as many as the ring has descriptors.
            resume = Some(used.wrapping_add(left.len() as u16));
            self.recovered[i] = left;
            self.inflight[i] = Some(queue);
        }
        let event_idx = self.features & feature::EVENT_IDX != 0;
        ring.start(&memory, event_idx, used, resume).map_err(fault)?;
        // A backend that died may have used buffers without saying so.
        ring.signal();
        if self.features & feature::PROTOCOL_FEATURES == 0 {
            ring.set_enabled(true);
        }
        Ok(())
    }

    fn stop(&mut self, index: usize) -> u16 {
        self.inflight[index] = None;
        self.recovered[index].clear();
        self.rings[index].stop()
    }

    fn reset(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
            self.rings[index].reset();
        }
        self.record = None;
        self.event = Event::Reset;
    }

    /// Finds running rings again in a changed memory table.
    fn memory_changed(&mut self) -> Result<()> {
        self.event = Event::Memory;
        for ring in self.rings.iter_mut().filter(|ring| ring.started()) {
            ring.resolve(&self.memory).map_err(fault)?;
        }
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered_features() != 0 {
            return Err(Fault::FeatureMismatch);
        }
        self.features = features;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<Protocol> {
        Ok(self.offered_protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let features = Protocol::from_bits(features).ok_or(Fault::FeatureMismatch)?;
        if !self.offered_protocol().contains(features) {
            return Err(Fault::FeatureMismatch);
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.offer.queues.into())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        if regions.len() != files.len() {
            return Err(Fault::InvalidParam);
        }
        let specs = regions.iter().map(region).zip(files).collect();
        self.memory.replace(specs).map_err(fault)?;
        self.memory_changed()?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        spec: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.memory.add(region(spec), file).map_err(fault)?;
        self.memory_changed()?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, spec: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region(spec)).map_err(fault)?;
        self.memory_changed()
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let ring = self.ring(index)?;
        if ring.started() {
            return Err(Fault::InvalidOperation("the ring runs"));
        }
        ring.set_size(num).map_err(fault)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            // Dirty logging (LOG_SHMFD) is not offered.
            return Err(Fault::InvalidParam);
        }
        let addresses = RingAddresses {
            descriptors,
            available,
            used,
        };
        let ring = self.rings.get_mut(index as usize).ok_or(Fault::InvalidParam)?;
        ring.set_addresses(addresses, &self.memory).map_err(fault)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index)?.set_base(base).map_err(fault)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.ring(index)?;
        let base = self.stop(index as usize);
        self.event = Event::Stopped(index as u16);
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        let fd = fd.ok_or(Fault::InvalidOperation("rings without a kick descriptor"))?;
        let ring = self.ring(index)?;
        ring.set_kick(fd).map_err(fault)?;
        if !ring.started() {
            self.start(index)?;
        }
        self.ring_event(index);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.set_call(fd).map_err(fault)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.set_err(fd).map_err(fault)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable);
        self.ring_event(index);
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // The parser bounds both by 4096. Bytes beyond the end read as zeros, for frontends that know of newer fields.
        let mut bytes: Vec<u8> = self
            .offer
            .config
            .iter()
            .skip(offset as usize)
            .take(size as usize)
            .copied()
            .collect();
        bytes.resize(size as usize, 0);
        Ok(bytes)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let (start, len) = self.offer.writable_config.ok_or(Fault::InvalidParam)?;
        let end = u64::from(offset) + bytes.len() as u64;
        if offset < start || end > u64::from(start) + u64::from(len) {
            return Err(Fault::InvalidParam);
        }
        self.offer
            .config
            .get_mut(offset as usize..end as usize)
            .ok_or(Fault::InvalidParam)?
            .copy_from_slice(bytes);
        self.event = Event::Config {
            offset,
            len: bytes.len() as u32,
        };
        Ok(())
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        if !self.offer.inflight {
            return Err(Fault::InvalidOperation("no inflight record"));
        }
        if asked.num_queues > self.offer.queues || asked.queue_size > self.offer.queue_size {
            return Err(Fault::InvalidParam);
        }
        let (shape, file) = InflightRecord::create(asked.num_queues, asked.queue_size).map_err(fault)?;
        let reply = VhostUserInflight::new(shape.area, shape.offset, shape.queues, shape.size);
        Ok((reply, file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        if self.rings.iter().any(Vring::started) {
            return Err(Fault::InvalidOperation("a ring runs"));
        }
        let shape = InflightShape {
            area: given.mmap_size,
            offset: given.mmap_offset,
            queues: given.num_queues,
            size: given.queue_size,
        };
        let record =
            InflightRecord::open(shape, file, self.offer.queues, self.offer.queue_size).map_err(fault)?;
        self.record = Some(record);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {
        // `Connection` keeps its own duplicate: the crate has no message for configuration changes.
    }

    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> Result<()> {
        Err(Fault::InvalidOperation("not a display"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Fault::InvalidOperation("no shared objects"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Fault::InvalidOperation("no device state"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Fault::InvalidOperation("no device state"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::default())
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Fault::InvalidOperation("no dirty log"))
    }
}

fn region(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

fn fault(error: impl std::error::Error + Send + Sync + 'static) -> Fault {
    Fault::ReqHandlerError(std::io::Error::other(error))
}

//! The memory balloon (virtio 1.2 §5.5) with free page reporting: pages that the driver does without, and says so.
//!
//! What is told is a hint: memory that is not given back costs the host something and the guest nothing. So each chain may
//! tell of as much as it likes, and only a bounded part of it is listened to.

use vm_memory::GuestAddress;

use crate::{
    chain::Chain,
    memory::Memory,
    vring::{RingError, Vring},
};

/// The device's type (§5).
pub const DEVICE_ID: u16 = 5;
/// Its rings (§5.5.2): `inflateq`, `deflateq`, `statsq`, `free_page_vq`, `reporting_vq`.
pub const QUEUES: u16 = 5;
/// Descriptors of a ring. Linux reports 32 ranges in one chain.
pub const QUEUE_SIZE: u16 = 128;
/// The balloon's unit, whatever the guest's pages are (§5.5.6).
pub const PAGE: u64 = 4096;
/// Bytes of the configuration (§5.5.4): the wanted and the actual number of pages.
pub const CONFIG_SIZE: usize = 8;
/// Pages of one inflating chain that are listened to. Linux sends 256.
pub const MAX_PAGES: usize = 4096;
/// Bytes of one reporting chain that are listened to. Linux reports 128 MiB at most.
pub const MAX_BYTES: u64 = 256 << 20;
/// Pages after which [`serve`] returns.
pub(crate) const BATCH: u64 = 1 << 16;

/// Features of the device (§5.5.3).
pub mod feature {
    /// `VIRTIO_BALLOON_F_STATS_VQ`
    pub const STATS_VQ: u64 = 1 << 1;
    /// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// `VIRTIO_BALLOON_F_PAGE_REPORTING`
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// What a ring is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its chains name pages that the driver puts into the balloon.
    Inflate,
    /// Its chains name pages that it takes out.
    Deflate,
    /// Its chains' buffers are free memory.
    Report,
}

/// What the ring of this number is for, when these features were agreed upon. §5.5.2 numbers the rings once and for all, but
/// drivers count those alone that there are, and devices followed (QEMU, Linux). Both numberings can be told apart.
pub fn role(ring: usize, features: u64) -> Option<Role> {
    // Those in between, which come before the reporting ring.
    let others = [feature::STATS_VQ, feature::FREE_PAGE_HINT]
        .iter()
        .filter(|feature| features & **feature != 0)
        .count();
    let reports = features & feature::PAGE_REPORTING != 0;
    match ring {
        0 => Some(Role::Inflate),
        1 => Some(Role::Deflate),
        _ if reports && (ring == 2 + others || ring == usize::from(QUEUES) - 1) => Some(Role::Report),
        _ => None,
    }
}

/// What [`serve`] works with; kept, so that it allocates nothing.
#[derive(Debug, Default)]
pub struct Work {
    chain: Chain,
    bytes: Vec<u8>,
    pages: Vec<u32>,
}

/// Serve a ring: `release` gets each range, in bytes, that the guest does without. It is the guest's word, checked by nobody yet
/// and not aligned to anything. True if there may be more to do at once; false: wait for a kick.
///
/// # Errors
/// If the guest broke a rule; the ring has stopped then.
pub fn serve(
    ring: &mut Vring,
    role: Role,
    memory: &Memory,
    work: &mut Work,
    mut release: impl FnMut(GuestAddress, u64),
) -> Result<bool, RingError> {
    let mut left = BATCH;
    let mut result = Ok(false);
    ring.disable_kicks(memory);
    loop {
        if left == 0 {
            result = Ok(true);
            break;
        }
        match ring.pop_or_rest(memory, &mut work.chain) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                result = Err(error);
                break;
            }
        }
        let listened = match role {
            Role::Inflate => work.inflate(memory, &mut release),
            // Memory that was given back is there again when it is touched.
            Role::Deflate => Ok(0),
            Role::Report => Ok(work.report(&mut release)),
        };
        // A chain that tells of nothing costs a little, too.
        left = left.saturating_sub(*listened.as_ref().unwrap_or(&0) + 16);
        let used = listened.and_then(|_| ring.push_used(memory, work.chain.head(), 0));
        if let Err(error) = used {
            ring.break_ring();
            result = Err(error);
            break;
        }
    }
    ring.notify(memory);
    result
}

impl Work {
    /// Neighbours together, since each range costs a system call.
    fn inflate(
        &mut self,
        memory: &Memory,
        release: &mut impl FnMut(GuestAddress, u64),
    ) -> Result<u64, RingError> {
        let wanted = (self.chain.readable_len() as usize).min(MAX_PAGES * 4);
        self.bytes.resize(wanted, 0);
        let read = self.chain.read(memory, 0, &mut self.bytes)?;
        self.pages.clear();
        let (words, _) = self.bytes[..read].as_chunks::<4>();
        self.pages
            .extend(words.iter().map(|word| u32::from_le_bytes(*word)));
        self.pages.sort_unstable();
        self.pages.dedup();
        for run in self
            .pages
            .chunk_by(|left, right| left.checked_add(1) == Some(*right))
        {
            release(GuestAddress(u64::from(run[0]) * PAGE), run.len() as u64 * PAGE);
        }
        Ok(words.len() as u64)
    }

    fn report(&self, release: &mut impl FnMut(GuestAddress, u64)) -> u64 {
        let mut left = MAX_BYTES;
        for buffer in self.chain.writable() {
            let length = left.min(buffer.len.into());
            if length == 0 {
                break;
            }
            release(buffer.addr, length);
            left -= length;
        }
        (MAX_BYTES - left) / PAGE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::vring::testing::{Chained, Driver};

    const MEMORY: u64 = 1 << 20;

    fn run(driver: &mut Driver, role: Role) -> (Result<bool, RingError>, Vec<(u64, u64)>) {
        let mut released = Vec::new();
        let result = serve(
            &mut driver.ring,
            role,
            &driver.memory,
            &mut Work::default(),
            |start, length| released.push((start.0, length)),
        );
        (result, released)
    }

    #[test]
    fn neighbouring_pages_are_released_together() {
        let mut driver = Driver::new(MEMORY as usize);
        let pages = [7u32, 0xffff_ffff, 5, 0x100, 6, 7, 0xffff_fffe];
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        driver.memory.write_slice(&bytes, GuestAddress(0x8000)).unwrap();
        // Three bytes are no page.
        driver.offer(&[
            Chained::read(0x8000, 6),
            Chained::read(0x8006, 22),
            Chained::read(0x9000, 3),
        ]);
        let (more, released) = run(&mut driver, Role::Inflate);
        assert!(!more.unwrap());
        assert_eq!(
            released,
            [(0x5000, 0x3000), (0x10_0000, 0x1000), (0xfff_ffff_e000, 0x2000)]
        );
        assert_eq!(driver.used(), [(0, 0)]);
    }

    #[test]
    fn reported_ranges_are_released_and_deflated_ones_only_answered() {
        let mut driver = Driver::new(MEMORY as usize);
        driver.offer(&[Chained::write(0x2_0000, 0x4000), Chained::write(0x8_0000, 0x1000)]);
        driver.offer(&[Chained::read(0x2_0000, 0x4000)]);
        let (more, released) = run(&mut driver, Role::Report);
        assert!(!more.unwrap());
        assert_eq!(released, [(0x2_0000, 0x4000), (0x8_0000, 0x1000)]);
        driver.offer(&[Chained::read(0x8000, 4)]);
        let (more, released) = run(&mut driver, Role::Deflate);
        assert!(!more.unwrap() && released.is_empty());
        assert_eq!(driver.used().len(), 3);
    }

    #[test]
    fn rings_are_found_by_either_numbering() {
        use Role::{Deflate, Inflate, Report};
        let roles = |features| (0..6).map(|ring| role(ring, features)).collect::<Vec<_>>();
        let reports = feature::PAGE_REPORTING;
        assert_eq!(
            roles(feature::DEFLATE_ON_OOM),
            [Some(Inflate), Some(Deflate), None, None, None, None]
        );
        assert_eq!(
            roles(reports),
            [
                Some(Inflate),
                Some(Deflate),
                Some(Report),
                None,
                Some(Report),
                None
            ]
        );
        assert_eq!(
            roles(reports | feature::STATS_VQ),
            [
                Some(Inflate),
                Some(Deflate),
                None,
                Some(Report),
                Some(Report),
                None
            ]
        );
    }

    proptest! {
        /// Whatever the driver tells: each chain is answered or the ring breaks, and no call releases more than it may.
        #[test]
        fn any_chain_is_answered_and_bounded(
            chains in prop::collection::vec(
                prop::collection::vec((0x8000u64..0x11_0000, 0u32..0x2_0000, 0u16..2), 1..4), 0..30),
            role in prop::sample::select(vec![Role::Inflate, Role::Deflate, Role::Report]),
            content in prop::collection::vec(any::<u8>(), 4096),
        ) {
            let mut driver = Driver::new(MEMORY as usize);
            for at in (0x8000..MEMORY).step_by(4096) {
                driver.memory.write_slice(&content, GuestAddress(at)).unwrap();
            }
            for chain in &chains {
                let chain: Vec<_> = chain.iter().map(|(addr, len, write)| {
                    if *write == 1 { Chained::write(*addr, *len) } else { Chained::read(*addr, *len) }
                }).collect();
                driver.offer(&chain);
            }
            for _ in 0..=chains.len() {
                let (more, released) = run(&mut driver, role);
                let pages: u64 = released.iter().map(|(_, length)| length / PAGE).sum();
                prop_assert!(pages <= BATCH + MAX_PAGES as u64 + MAX_BYTES / PAGE);
                if !matches!(more, Ok(true)) {
                    break;
                }
            }
            prop_assert!(driver.used().iter().all(|(_, written)| *written == 0));
            prop_assert!(!driver.ring.running() || driver.used().len() == chains.len());
        }
    }
}

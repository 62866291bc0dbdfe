//! The console device (virtio 1.2 §5.3) with one port: bytes that the guest prints, and bytes that it is typed.
//!
//! What is printed goes wherever there is room; where there is none, it waits in the guest's memory. What is typed waits in a
//! bounded queue until the guest offers a buffer.

use std::collections::VecDeque;

use crate::{
    chain::Chain,
    memory::Memory,
    vring::{RingError, Vring},
};

/// The device's type (§5).
pub const DEVICE_ID: u16 = 3;
/// Its rings: `receiveq(port0)`, `transmitq(port0)`.
pub const QUEUES: u16 = 2;
/// The ring of what is typed.
pub const RECEIVE: usize = 0;
/// The ring of what is printed.
pub const TRANSMIT: usize = 1;
/// Descriptors of a ring.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of the configuration (§5.3.4), all of which belong to features that are not offered.
pub const CONFIG_SIZE: usize = 12;
/// Bytes that wait for the guest to read them: a line of a terminal is 4096 bytes at most.
pub const MAX_INPUT: usize = 4096;
/// Bytes that are copied at once.
const PIECE: usize = 4096;
/// Bytes after which [`Console::transmit`] returns.
const BATCH: usize = 64 << 10;

/// Takes what the guest prints.
pub trait Outlet {
    /// How many bytes it would take.
    fn room(&self) -> usize;
    /// Take these; no more than there is room for.
    fn put(&mut self, bytes: &[u8]);
}

/// How far [`Console::transmit`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All is printed: wait for a kick.
    Done,
    /// There may be more to do at once.
    More,
    /// There is no room: come again when there is.
    Full,
}

/// The device.
#[derive(Debug, Default)]
pub struct Console {
    input: VecDeque<u8>,
    /// A chain that is printed in part: its head.
    printing: Option<u16>,
    /// How many of its bytes are printed. Kept when the chain is left, so that nothing is printed twice.
    printed: u32,
    chain: Chain,
    /// Of the other ring.
    buffer: Chain,
}

impl Console {
    /// Type these. How many of them have room.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(MAX_INPUT - self.input.len());
        self.input.extend(&bytes[..count]);
        count
    }

    /// Give the guest what was typed. True if there may be more to do at once; false: wait for a kick, or for more.
    ///
    /// # Errors
    /// If the guest broke a rule; the ring has stopped then.
    pub fn receive(&mut self, ring: &mut Vring, memory: &Memory) -> Result<bool, RingError> {
        ring.disable_kicks(memory);
        let mut result = Ok(false);
        // Buffers of no bytes would do for ever.
        let mut left = QUEUE_SIZE;
        while !self.input.is_empty() {
            if left == 0 {
                result = Ok(true);
                break;
            }
            left -= 1;
            match ring.pop_or_rest(memory, &mut self.buffer) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            if let Err(error) = self.fill(ring, memory) {
                ring.break_ring();
                result = Err(error);
                break;
            }
        }
        ring.notify(memory);
        result
    }

    fn fill(&mut self, ring: &mut Vring, memory: &Memory) -> Result<(), RingError> {
        let bytes = self.input.make_contiguous();
        let written = self.buffer.write(memory, 0, bytes)?;
        self.input.drain(..written);
        // At most `MAX_INPUT`.
        ring.push_used(memory, self.buffer.head(), written as u32)
    }

    /// Print what the guest offers, as far as there is room.
    ///
    /// # Errors
    /// If the guest broke a rule; the ring has stopped then.
    pub fn transmit(
        &mut self,
        ring: &mut Vring,
        memory: &Memory,
        outlet: &mut impl Outlet,
    ) -> Result<Progress, RingError> {
        ring.disable_kicks(memory);
        let result = self.print(ring, memory, outlet);
        if result.is_err() {
            ring.break_ring();
        }
        ring.notify(memory);
        result
    }

    fn print(
        &mut self,
        ring: &mut Vring,
        memory: &Memory,
        outlet: &mut impl Outlet,
    ) -> Result<Progress, RingError> {
        let mut left = BATCH;
        while left > 0 {
            if self.printing.is_none() {
                if !ring.pop(memory, &mut self.chain)? {
                    if ring.enable_kicks(memory) {
                        continue;
                    }
                    return Ok(Progress::Done);
                }
                (self.printing, self.printed) = (Some(self.chain.head()), 0);
                // A chain of no bytes costs a little, too.
                left = left.saturating_sub(64);
            }
            let mut piece = [0; PIECE];
            let rest = self.chain.readable_len().saturating_sub(self.printed) as usize;
            let wanted = rest.min(PIECE).min(outlet.room());
            let read = self.chain.read(memory, self.printed, &mut piece[..wanted])?;
            if read == 0 && rest > 0 {
                return Ok(Progress::Full);
            }
            outlet.put(&piece[..read]);
            self.printed += read as u32;
            left = left.saturating_sub(read);
            if read == rest {
                self.printing = None;
                self.printed = 0;
                ring.push_used(memory, self.chain.head(), 0)?;
            }
        }
        Ok(Progress::More)
    }

    /// The rings stop: the chain that is printed in part, and to be handed to [`Console::take_up`] when they go on.
    pub fn leave(&mut self) -> Option<u16> {
        self.printing.take()
    }

    /// Go on with the chain that was left.
    ///
    /// # Errors
    /// If it is none any more.
    pub fn take_up(&mut self, ring: &Vring, memory: &Memory, head: u16) -> Result<(), RingError> {
        ring.load(memory, head, &mut self.chain)?;
        self.printing = Some(head);
        Ok(())
    }

    /// What was typed and not read, and how much of the chain that was left is printed.
    pub fn state(&self) -> (Vec<u8>, u32) {
        (self.input.iter().copied().collect(), self.printed)
    }

    /// Take that on. False if so much cannot have been typed.
    pub fn set_state(&mut self, input: &[u8], printed: u32) -> bool {
        if input.len() > MAX_INPUT {
            return false;
        }
        self.reset();
        self.input.extend(input);
        self.printed = printed;
        true
    }

    /// As after its making.
    pub fn reset(&mut self) {
        self.input.clear();
        self.printing = None;
        self.printed = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::vring::testing::{Chained, Driver};

    const MEMORY: usize = 1 << 20;

    /// Has room for a few bytes at a time.
    #[derive(Default)]
    struct Paper {
        printed: Vec<u8>,
        room: usize,
    }

    impl Outlet for Paper {
        fn room(&self) -> usize {
            self.room
        }

        fn put(&mut self, bytes: &[u8]) {
            self.room = self.room.checked_sub(bytes.len()).unwrap();
            self.printed.extend(bytes);
        }
    }

    #[test]
    fn what_is_typed_is_read_once_and_bounded() {
        let mut driver = Driver::new(MEMORY);
        let mut console = Console::default();
        assert_eq!(console.type_in(&[b'x'; MAX_INPUT + 1]), MAX_INPUT);
        assert_eq!(console.type_in(b"y"), 0);
        driver.offer(&[Chained::write(0x8000, 4000)]);
        assert!(!console.receive(&mut driver.ring, &driver.memory).unwrap());
        assert_eq!(console.type_in(b"yz"), 2);
        driver.offer(&[Chained::write(0x9000, 0)]);
        driver.offer(&[
            Chained::read(0x9000, 4),
            Chained::write(0x9010, 90),
            Chained::write(0xa000, 100),
        ]);
        assert!(!console.receive(&mut driver.ring, &driver.memory).unwrap());
        assert_eq!(driver.used(), [(0, 4000), (1, 0), (2, 98)]);
        let mut end = [0; 8];
        driver.memory.read_slice(&mut end, GuestAddress(0xa000)).unwrap();
        assert_eq!(&end, b"xxxxxxyz");
    }

    #[test]
    fn a_chain_that_was_left_is_printed_on_and_not_twice() {
        let mut driver = Driver::new(MEMORY);
        driver
            .memory
            .write_slice(b"hello, world", GuestAddress(0x8000))
            .unwrap();
        let head = driver.offer(&[Chained::read(0x8000, 7), Chained::read(0x8007, 5)]);
        let mut paper = Paper {
            room: 9,
            ..Paper::default()
        };
        let mut console = Console::default();
        let progress = console.transmit(&mut driver.ring, &driver.memory, &mut paper);
        assert_eq!((progress.unwrap(), driver.used().len()), (Progress::Full, 0));
        assert_eq!(console.leave(), Some(head));
        let (input, printed) = console.state();
        let mut other = Console::default();
        assert!(other.set_state(&input, printed));
        assert!(!other.set_state(&[0; MAX_INPUT + 1], 0));
        other.take_up(&driver.ring, &driver.memory, head).unwrap();
        paper.room = 100;
        let progress = other.transmit(&mut driver.ring, &driver.memory, &mut paper);
        assert_eq!(progress.unwrap(), Progress::Done);
        assert_eq!(
            (&*paper.printed, &*driver.used()),
            (&b"hello, world"[..], &[(0, 0)][..])
        );
    }

    #[test]
    fn typing_disturbs_no_chain_that_is_printed_in_part() {
        let (mut there, mut back) = (Driver::new(MEMORY), Driver::new(MEMORY));
        there.memory.write_slice(b"hello", GuestAddress(0x8000)).unwrap();
        there.offer(&[Chained::read(0x8000, 5)]);
        back.offer(&[Chained::write(0x8000, 16)]);
        let mut paper = Paper::default();
        let mut console = Console::default();
        for room in [2, 1, 2] {
            paper.room = room;
            console
                .transmit(&mut there.ring, &there.memory, &mut paper)
                .unwrap();
            console.type_in(b"x");
            console.receive(&mut back.ring, &back.memory).unwrap();
        }
        assert_eq!((&*paper.printed, &*there.used()), (&b"hello"[..], &[(0, 0)][..]));
        assert_eq!(back.used(), [(0, 1)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the driver offers and however much room there is: what is printed is what was offered, in order, and no call does
        /// more than it may.
        #[test]
        fn all_is_printed_in_order(
            chains in prop::collection::vec(prop::collection::vec((0x8000u64..0x10_1000, 0u32..0x1_8000), 0..3), 0..40),
            rooms in prop::collection::vec(0usize..0x2_0000, 1..100),
            cut in any::<bool>(),
        ) {
            let mut driver = Driver::new(MEMORY);
            let content: Vec<u8> = (0..MEMORY - 0x4000).map(|at| (at % 251) as u8).collect();
            driver.memory.write_slice(&content, GuestAddress(0x4000)).unwrap();
            let mut wanted = Vec::new();
            let mut sound = true;
            for chain in chains.iter().filter(|chain| !chain.is_empty()) {
                for (addr, len) in chain {
                    let from = *addr as usize - 0x4000;
                    let bytes = content.get(from..from + *len as usize);
                    sound &= bytes.is_some();
                    if sound {
                        wanted.extend(bytes.unwrap());
                    }
                }
                let chain: Vec<_> = chain.iter().map(|(addr, len)| Chained::read(*addr, *len)).collect();
                driver.offer(&chain);
            }
            let mut console = Console::default();
            let mut paper = Paper::default();
            for room in rooms.iter().copied().chain(std::iter::repeat_n(1 << 30, 600)) {
                paper.room = room;
                let before = paper.printed.len();
                let progress = console.transmit(&mut driver.ring, &driver.memory, &mut paper);
                prop_assert!(paper.printed.len() - before <= BATCH + PIECE);
                match progress {
                    Ok(Progress::Done) if room == 1 << 30 => break,
                    Ok(Progress::Full) => prop_assert_eq!(paper.room, 0),
                    Ok(_) => {}
                    Err(_) => {
                        prop_assert!(!sound && !driver.ring.running());
                        break;
                    }
                }
                if cut && let Some(head) = console.leave() {
                    console.take_up(&driver.ring, &driver.memory, head).unwrap();
                }
            }
            if sound {
                prop_assert_eq!(paper.printed, wanted);
            } else {
                prop_assert!(wanted.starts_with(&paper.printed));
            }
        }

        /// Whatever buffers the driver offers: what it gets is what was typed, in order.
        #[test]
        fn all_is_read_in_order(
            buffers in prop::collection::vec((0u32..600, any::<bool>()), 0..80),
            typed in prop::collection::vec(0usize..300, 0..40),
        ) {
            let mut driver = Driver::new(MEMORY);
            let mut console = Console::default();
            let mut wanted = Vec::new();
            let mut at = 0x8000u64;
            let mut places = Vec::new();
            let mut typed = typed.into_iter();
            for (len, call) in buffers {
                driver.offer(&[Chained::write(at, len)]);
                places.push(at);
                at += u64::from(len);
                if call {
                    let bytes: Vec<u8> = (0..typed.next().unwrap_or(0)).map(|i| ((wanted.len() + i) % 251) as u8).collect();
                    let taken = console.type_in(&bytes);
                    wanted.extend(&bytes[..taken]);
                    while console.receive(&mut driver.ring, &driver.memory).unwrap() {}
                }
            }
            let mut got = Vec::new();
            for (head, written) in driver.used() {
                let mut bytes = vec![0; written as usize];
                driver.memory.read_slice(&mut bytes, GuestAddress(places[head as usize])).unwrap();
                got.extend(bytes);
            }
            prop_assert_eq!(got.len() + console.state().0.len(), wanted.len());
            prop_assert!(wanted.starts_with(&got));
        }
    }
}

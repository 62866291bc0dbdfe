//! Which pair of rings a frame to the guest goes to (virtio 1.2 §5.1.6.5.5, automatic receive steering): the one on which the guest last
//! sent in the same flow, so that a connection stays with one of its processors.
//!
//! Flows share the entries of a small table; a wrong pair costs the guest a little time, and no more.

/// Entries: a byte of hash.
const ENTRIES: usize = 256;
/// No pair yet.
const UNKNOWN: u8 = 0xff;

/// What was learnt.
#[derive(Debug)]
pub(super) struct Steering([u8; ENTRIES]);

impl Default for Steering {
    fn default() -> Self {
        Steering([UNKNOWN; ENTRIES])
    }
}

impl Steering {
    /// The guest sent this frame on this pair.
    pub fn learn(&mut self, frame: &[u8], pair: u16) {
        // Pairs are few.
        self.0[usize::from(flow(frame))] = pair as u8;
    }

    /// The pair, of so many, for this frame.
    pub fn pair(&self, frame: &[u8], pairs: u16) -> u16 {
        let flow = flow(frame);
        match u16::from(self.0[usize::from(flow)]) {
            pair if pair < pairs => pair,
            // Its pair is out of use, or it has none.
            _ => u16::from(flow) % pairs.max(1),
        }
    }
}

/// A hash of the frame's flow, the same in both directions.
fn flow(frame: &[u8]) -> u8 {
    let word = |at: usize| {
        frame
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_be_bytes)
    };
    let short = |at: usize| word(at) >> 16;
    // Where the addresses begin and how many words they have, the protocol, and where its header is unless this is a fragment.
    let (at, words, protocol, ports) = match short(12) {
        0x0800 => {
            let header = 14 + usize::from(frame.get(14).copied().unwrap_or(0) & 15) * 4;
            // More fragments, or an offset.
            let whole = short(20) & 0x3fff == 0;
            (26, 2, short(22) & 0xff, whole.then_some(header))
        }
        0x86dd => (22, 8, short(20) >> 8 & 0xff, Some(54)),
        _ => (0, 3, 0, None),
    };
    let mut sum = protocol;
    for index in 0..words {
        // Addition knows no order, so that both directions are one flow.
        sum = sum.wrapping_add(word(at + index * 4));
    }
    // TCP and UDP.
    if let Some(at) = ports.filter(|_| matches!(protocol, 6 | 17)) {
        sum = sum.wrapping_add((short(at) + short(at + 2)) << 8);
    }
    // Multiplicative hashing: the top bits depend on all others.
    (sum.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn udp(six: bool, from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, from.0], [2, 0, 0, 0, 0, to.0]);
        let address = |end: u8| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end];
        let mut frame = Vec::new();
        let builder = if six {
            ethernet.ipv6(address(from.0), address(to.0), 64)
        } else {
            ethernet.ipv4([10, 0, 0, from.0], [10, 0, 0, to.0], 64)
        };
        builder.udp(from.1, to.1).write(&mut frame, b"payload").unwrap();
        frame
    }

    proptest! {
        /// The answer comes on the pair of the question, as long as that is in use.
        #[test]
        fn answers_come_where_the_question_was(six in any::<bool>(), from in any::<(u8, u16)>(), to in any::<(u8, u16)>(), pair in 0u16..4, pairs in 1u16..=4) {
            let mut steering = Steering::default();
            prop_assert!(steering.pair(&udp(six, to, from), pairs) < pairs);
            steering.learn(&udp(six, from, to), pair);
            let found = steering.pair(&udp(six, to, from), pairs);
            prop_assert!(found == pair || pair >= pairs && found < pairs);
        }

        #[test]
        fn any_frame_has_a_pair(frame in prop::collection::vec(any::<u8>(), 0..80), kind in prop_oneof![Just([8u8, 0]), Just([0x86, 0xdd]), any::<[u8; 2]>()], pairs in 0u16..5) {
            let mut frame = frame;
            if let Some(place) = frame.get_mut(12..14) {
                place.copy_from_slice(&kind);
            }
            let mut steering = Steering::default();
            steering.learn(&frame, 3);
            prop_assert!(steering.pair(&frame, pairs) < pairs.max(1));
        }
    }

    #[test]
    fn fragments_of_a_packet_go_together() {
        let mut first = udp(false, (1, 1000), (2, 53));
        // More fragments; then one with an offset and without the ports.
        first[20] = 0x20;
        let mut later = first.clone();
        later[20..22].copy_from_slice(&[0, 9]);
        later[34..38].fill(7);
        assert_eq!(flow(&first), flow(&later));
    }

    #[test]
    fn unknown_flows_are_spread() {
        let steering = Steering::default();
        let mut counts = [0; 4];
        for port in 0..4000 {
            counts[usize::from(steering.pair(&udp(false, (1, 1024 + port), (2, 443)), 4))] += 1;
        }
        assert!(counts.iter().all(|count| *count > 700), "{counts:?}");
    }
}

//! The Internet checksum: whole (RFC 1071) and incremental (RFC 1624).

/// The one's complement sum of `data`, folded to 16 bits, on top of `start`.
pub fn sum(data: &[u8], start: u32) -> u16 {
    let mut total = u64::from(start);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        if let Ok(bytes) = <[u8; 4]>::try_from(word) {
            total += u64::from(u32::from_be_bytes(bytes));
        }
    }
    let mut last = [0; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    fold(total)
}

/// Folds carries until 16 bits remain.
pub fn fold(mut total: u64) -> u16 {
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The checksum of `data`, its own field being zero.
pub fn of(data: &[u8]) -> u16 {
    !sum(data, 0)
}

/// The sum of the pseudo-header of TCP and UDP over IPv4 or IPv6: addresses (one after the other), protocol, length.
pub fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u16 {
    let length = length as u64;
    fold(u64::from(sum(addresses, 0)) + u64::from(protocol) + (length & 0xffff) + (length >> 16))
}

/// How a stored checksum follows a change of the bytes that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A finished checksum, complemented.
    Whole,
    /// The bare sum of the pseudo-header, which a later checksum offload finishes (virtio 1.2 §5.1.6.2).
    Partial,
}

/// The checksum `old` after the covered bytes `before` became `after`. Both have the same even length and stand at an
/// even offset.
pub fn updated(old: u16, field: Field, before: &[u8], after: &[u8]) -> u16 {
    let bare = if field == Field::Whole { !old } else { old };
    let new = fold(u64::from(bare) + u64::from(!sum(before, 0)) + u64::from(sum(after, 0)));
    if field == Field::Whole { !new } else { new }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0), 0xddf2);
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_new_sum(mut data in proptest::collection::vec(any::<u8>(), 8..64), new in any::<[u8; 4]>()) {
            let old = of(&data);
            let before: [u8; 4] = data[4..8].try_into().unwrap();
            data[4..8].copy_from_slice(&new);
            let incremental = updated(old, Field::Whole, &before, &new);
            // 0x0000 and 0xffff are the same number in one's complement.
            let whole = of(&data);
            prop_assert!(incremental == whole || (incremental ^ whole) == 0xffff && (whole == 0 || whole == 0xffff));
        }
    }
}

//! Arithmetic of prefixes: what is left of a pool, and which part of it to give away. Pure.

use ipnet::IpNet;

use super::ranges::overlap;

/// The same addresses in as few prefixes as they need, sorted.
pub(crate) fn compact(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut compact = IpNet::aggregate(&prefixes.iter().map(IpNet::trunc).collect());
    compact.sort();
    compact
}

/// Every address of `inner` is one of `outer`.
pub(crate) fn covers(outer: &[IpNet], inner: IpNet) -> bool {
    compact(outer).iter().any(|prefix| prefix.contains(&inner))
}

/// What is left of the prefixes without those that are taken.
pub(crate) fn without(prefixes: &[IpNet], taken: &[IpNet]) -> Vec<IpNet> {
    taken.iter().fold(compact(prefixes), |free, taken| {
        free.into_iter()
            .flat_map(|prefix| subtract(prefix, *taken))
            .collect()
    })
}

fn subtract(from: IpNet, taken: IpNet) -> Vec<IpNet> {
    if !overlap(from, taken) {
        return vec![from];
    }
    let (mut rest, mut inner) = (Vec::new(), from);
    while inner.prefix_len() < taken.prefix_len() {
        let Ok(halves) = inner.subnets(inner.prefix_len() + 1) else {
            break;
        };
        for half in halves {
            if half.contains(&taken) {
                inner = half;
            } else {
                rest.push(half);
            }
        }
    }
    rest
}

/// A prefix of this length: of the smallest free one that is large enough, so that the large ones stay whole.
pub(crate) fn pick(free: &[IpNet], length: u8) -> Option<IpNet> {
    let fits = free.iter().filter(|prefix| prefix.prefix_len() <= length);
    let from = fits.min_by_key(|prefix| (u8::MAX - prefix.prefix_len(), prefix.network()))?;
    from.subnets(length).ok()?.next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn prefixes_join_and_part() {
        assert_eq!(
            compact(&nets("10.0.1.0/24 10.0.0.0/24 10.0.0.128/25")),
            nets("10.0.0.0/23")
        );
        assert!(covers(&nets("10.0.0.0/24 10.0.1.0/24"), nets("10.0.0.0/23")[0]));
        assert!(!covers(&nets("10.0.0.0/24"), nets("10.0.0.0/23")[0]));
        let mut left = without(&nets("10.0.0.0/22"), &nets("10.0.1.0/24 10.9.0.0/16"));
        left.sort();
        assert_eq!(left, nets("10.0.0.0/24 10.0.2.0/23"));
        assert_eq!(without(&nets("10.0.1.0/24"), &nets("10.0.0.0/16")), []);
    }

    #[test]
    fn the_smallest_gap_that_fits_is_used() {
        let free = nets("10.0.0.0/16 10.9.2.0/24 10.9.1.0/24 10.8.0.0/26");
        assert_eq!(pick(&free, 24), nets("10.9.1.0/24").pop());
        assert_eq!(pick(&free, 26), nets("10.8.0.0/26").pop());
        assert_eq!(pick(&free, 20), nets("10.0.0.0/20").pop());
        assert_eq!(pick(&free, 15), None);
        assert_eq!(pick(&nets("2001:db8::/32"), 64), nets("2001:db8::/64").pop());
    }

    proptest! {
        /// A pool can be given away to its last address, and nothing is given twice.
        #[test]
        fn nothing_is_given_twice(lengths in proptest::collection::vec(24u8..=28, 1..40)) {
            let pool = nets("10.0.0.0/22");
            let mut given: Vec<IpNet> = Vec::new();
            for length in lengths {
                let size = |net: &IpNet| 1u32 << (32 - net.prefix_len());
                match pick(&without(&pool, &given), length) {
                    Some(net) => {
                        prop_assert!(covers(&pool, net) && net.prefix_len() == length);
                        prop_assert!(!given.iter().any(|other| overlap(*other, net)));
                        given.push(net);
                    }
                    None => {
                        let left: u32 = without(&pool, &given).iter().map(size).sum();
                        prop_assert_eq!(left, 1024 - given.iter().map(size).sum::<u32>());
                        prop_assert!(without(&pool, &given).iter().all(|net| net.prefix_len() > length));
                    }
                }
            }
        }
    }
}

//! How much a volume may be used: what its type's QoS specs come to at its size.
//!
//! The keys are Cinder's ("Basic volume quality of service", "Capacity based quality of service"), and for flavors Nova's with their prefix:
//! ```text
//! {total,read,write}_{iops,bytes}_sec               a fixed figure
//!                                    _max            with a fixed figure: what a burst may have, for
//!                                    _max_length     this many seconds (1)
//!                                    _per_gb         times the volume's GiB, which counts before a fixed figure;
//!                                    _per_gb_min     no less than this,
//!                                    _max            and no more than this
//! ```
//! Zero is no limit, as with libvirt. Figures per GiB may have a fraction, so that 500 IOPS per TiB can be said. Who consumes
//! them makes no difference: one process serves the volume, and it is front-end and back-end. What is no figure, and other keys, are kept and mean
//! nothing here.

use model::disk::{Burst, DiskLimits, Rate};
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::row::{self, Pairs};
use crate::Result;

/// What specs whose keys have this prefix come to, for something of this size.
pub(crate) fn of_specs(specs: &Pairs, prefix: &str, gib: Option<u32>) -> DiskLimits {
    let rate = |name| rate(specs, &format!("{prefix}{name}"), gib);
    DiskLimits {
        total_iops: rate("total_iops_sec"),
        read_iops: rate("read_iops_sec"),
        write_iops: rate("write_iops_sec"),
        total_bytes: rate("total_bytes_sec"),
        read_bytes: rate("read_bytes_sec"),
        write_bytes: rate("write_bytes_sec"),
    }
}

fn rate(specs: &Pairs, key: &str, gib: Option<u32>) -> Option<Rate> {
    let figure = |suffix: &str| {
        let figure: f64 = specs.get(&format!("{key}{suffix}"))?.trim().parse().ok()?;
        (figure.is_finite() && figure > 0.0).then_some(figure)
    };
    if let (Some(per_gb), Some(gib)) = (figure("_per_gb"), gib) {
        let least = figure("_per_gb_min").unwrap_or(0.0);
        let most = figure("_max").unwrap_or(f64::INFINITY);
        return Some(Rate::steady(whole(
            (per_gb * f64::from(gib)).max(least).min(most),
        )));
    }
    let burst = figure("_max").map(|per_second| Burst {
        per_second: whole(per_second),
        seconds: figure("_max_length").map_or(1, |length| u32::try_from(whole(length)).unwrap_or(u32::MAX)),
    });
    Some(Rate {
        per_second: whole(figure("")?),
        burst,
    })
}

/// A figure that is limited at all is at least one.
fn whole(figure: f64) -> u64 {
    // `as` stays within the bounds of the type.
    (figure.round() as u64).max(1)
}

/// How much a volume may be used; `None` if it is no volume of this service.
///
/// # Errors
/// If the database cannot be read.
pub(crate) fn of_volume(conn: &Connection, volume: Uuid) -> Result<Option<DiskLimits>> {
    let mut query = conn.prepare_cached(
        "SELECT v.size, q.specs FROM volume_volumes v LEFT JOIN volume_types t ON t.id = v.type_id \
         LEFT JOIN volume_qos_specs q ON q.id = t.qos_id WHERE v.id = ?1",
    )?;
    let found = query.query_row([volume.to_string()], |row| {
        let specs: Option<String> = row.get("specs")?;
        let specs = specs.map(|_| row::json(row, "specs")).transpose()?;
        Ok((row.get("size")?, specs))
    });
    let limits = |(size, specs): (u32, Option<Pairs>)| {
        specs.map_or_else(DiskLimits::default, |specs| of_specs(&specs, "", Some(size)))
    };
    Ok(found.optional()?.map(limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)], gib: u32) -> DiskLimits {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        of_specs(&pairs.collect(), "", Some(gib))
    }

    fn iops(pairs: &[(&str, &str)], gib: u32) -> Option<u64> {
        of(pairs, gib).total_iops.map(|rate| rate.per_second)
    }

    #[test]
    fn fixed_figures_and_their_bursts() {
        let limits = of(
            &[
                ("total_iops_sec", "500"),
                ("total_iops_sec_max", "2000"),
                ("total_iops_sec_max_length", "60"),
                ("read_bytes_sec", " 1048576 "),
                ("read_bytes_sec_max", "2097152"),
                ("write_iops_sec", "0"),
                ("read_iops_sec", "many"),
                ("write_bytes_sec", "-5"),
                ("total_bytes_sec_max", "9"),
                ("latency", "low"),
            ],
            1,
        );
        let expected = DiskLimits {
            total_iops: Some(Rate {
                per_second: 500,
                burst: Some(Burst {
                    per_second: 2000,
                    seconds: 60,
                }),
            }),
            read_bytes: Some(Rate {
                per_second: 1 << 20,
                burst: Some(Burst {
                    per_second: 2 << 20,
                    seconds: 1,
                }),
            }),
            ..DiskLimits::default()
        };
        assert_eq!(limits, expected);
    }

    #[test]
    fn figures_per_gib_lie_between_their_least_and_their_most() {
        let class = [
            ("total_iops_sec_per_gb", "1.46484375"),
            ("total_iops_sec_per_gb_min", "100"),
            ("total_iops_sec_max", "10000"),
        ];
        for (gib, expected) in [
            (1, 100),
            (68, 100),
            (69, 101),
            (512, 750),
            (1024, 1500),
            (16384, 10_000),
        ] {
            assert_eq!(iops(&class, gib), Some(expected), "{gib} GiB");
        }
        assert_eq!(of(&class, 512).total_iops.unwrap().burst, None);
        // It counts before a fixed figure.
        let both = [("total_iops_sec", "7"), ("total_iops_sec_per_gb", "30")];
        assert_eq!(iops(&both, 100), Some(3000));
        assert_eq!(iops(&[("total_iops_sec_per_gb", "0.001")], 1), Some(1));
        assert_eq!(
            iops(&[("total_iops_sec_per_gb", "1e300")], u32::MAX),
            Some(u64::MAX)
        );
        for none in ["nan", "inf", "", "1 2", "0x10"] {
            assert_eq!(iops(&[("total_iops_sec", none)], 1), None, "{none}");
        }
    }

    #[test]
    fn flavors_have_a_prefix_and_no_size() {
        let specs = Pairs::from([
            ("quota:disk_write_iops_sec".to_owned(), "80".to_owned()),
            ("quota:disk_read_iops_sec_per_gb".to_owned(), "80".to_owned()),
            ("write_bytes_sec".to_owned(), "80".to_owned()),
        ]);
        let expected = DiskLimits {
            write_iops: Some(Rate::steady(80)),
            ..DiskLimits::default()
        };
        assert_eq!(of_specs(&specs, "quota:disk_", None), expected);
    }
}

//! S3: buckets and objects.
//!
//! What this room has so far is the grammar of bucket names, which rules above it already need to refuse a name early.

/// Whether this is a bucket's name: 3 to 63 lower-case letters, digits, dots and hyphens, a letter or digit at both
/// ends, no two dots in a row, and not an IPv4 address (Amazon S3 User Guide, "Bucket naming rules").
pub fn is_bucket_name(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(b))
        && !name.contains("..")
        && name.parse::<std::net::Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::is_bucket_name;

    #[test]
    fn bucket_names_follow_the_rules() {
        for good in ["abc", "my-bucket.example", "0a0", &"a".repeat(63)] {
            assert!(is_bucket_name(good), "{good}");
        }
        for bad in [
            "",
            "ab",
            "Abc",
            "-ab",
            "ab-",
            "a..b",
            "192.168.5.4",
            "a_b",
            "äbc",
            &"a".repeat(64),
        ] {
            assert!(!is_bucket_name(bad), "{bad}");
        }
    }
}

//! TAP devices (Linux, Documentation/networking/tuntap.rst): an Ethernet interface of the host whose other end is a
//! descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// `struct ifreq` (netdevice(7)) as TUNSETIFF reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

mod ioctl {
    #![allow(unsafe_code)]
    nix::ioctl_readwrite_bad!(set_interface, libc::TUNSETIFF, super::InterfaceRequest);
}

/// Make a TAP of this name with virtio headers, or attach to one that nobody else is attached to.
/// It goes away when the last copy of the descriptor is closed.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("'{name}' is not a name for an interface"),
        )
    };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0', '%']) {
        return Err(invalid());
    }
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = libc::c_short::try_from(flags).map_err(|_| invalid())?;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq` of 40 bytes, which `InterfaceRequest` is; it lives until
    // the call returns, and nobody else has it.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_interface(device.as_raw_fd(), &mut request) }?;
    Ok(device.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_tap_lives_as_long_as_its_descriptor() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let interfaces = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let tap = open("allod-test").unwrap();
        assert!(interfaces().contains("allod-test:"));
        assert_eq!(
            open("allod-test").unwrap_err().raw_os_error(),
            Some(libc::EBUSY),
            "one owner at a time"
        );
        drop(tap);
        assert!(!interfaces().contains("allod-test:"));
        for bad in ["", "a/b", "tap%d", "a-name-that-is-too-long"] {
            assert_eq!(
                open(bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{bad}"
            );
        }
        assert!(Path::new("/dev/net/tun").exists());
    }
}

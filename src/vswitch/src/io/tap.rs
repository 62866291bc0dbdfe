//! TAP devices (Linux, Documentation/networking/tuntap.rst) with virtio headers, so that offloads pass.
#![allow(unsafe_code)] // Three ioctls.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::frame::{Abilities, Frame, MAX_FRAME, Offload, VNET_HEADER};

/// `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6` (linux/if_tun.h): the kernel may leave this work to us.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04;

mod ioctl {
    nix::ioctl_read!(get_flags, b'T', 210, libc::c_uint);
    nix::ioctl_write_int!(set_offload, b'T', 208);
    nix::ioctl_write_ptr!(set_header_size, b'T', 216, libc::c_int);
}

/// A TAP device.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// What came out of a TAP.
#[derive(Debug)]
pub(super) enum Read {
    /// A frame.
    Frame(Frame),
    /// Something that is none.
    Nonsense,
    /// Nothing now.
    Empty,
    /// The device is gone.
    Gone,
}

impl Tap {
    /// Takes over a TAP; the error says what is wrong with it.
    pub fn new(fd: OwnedFd) -> Result<Self, String> {
        // TUNGETIFF fills in a struct ifreq: 40 bytes, the flags behind the 16 of the name.
        let mut request = [0u32; 10];
        // SAFETY: the kernel writes a struct ifreq, which is as long as the array.
        unsafe { ioctl::get_flags(fd.as_raw_fd(), request.as_mut_ptr()) }
            .map_err(|error| format!("the descriptor is not a TAP: {error}"))?;
        let flags = (request[4] & 0xffff) as i32;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err("the TAP needs IFF_TAP, IFF_NO_PI and IFF_VNET_HDR".into());
        }
        let size = VNET_HEADER as libc::c_int;
        // SAFETY: the kernel reads one int.
        unsafe { ioctl::set_header_size(fd.as_raw_fd(), &size) }
            .map_err(|error| format!("the TAP's header size: {error}"))?;
        // SAFETY: the argument is a number.
        unsafe { ioctl::set_offload(fd.as_raw_fd(), OFFLOADS) }
            .map_err(|error| format!("the TAP's offloads: {error}"))?;
        let current = fcntl(&fd, FcntlArg::F_GETFL).map_err(|error| error.to_string())?;
        let flags = OFlag::from_bits_truncate(current) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(|error| error.to_string())?;
        Ok(Self {
            fd,
            buffer: vec![0; VNET_HEADER + MAX_FRAME],
        })
    }

    /// The next frame from the kernel.
    pub fn read(&mut self) -> Read {
        let length = loop {
            match nix::unistd::read(&self.fd, &mut self.buffer) {
                Ok(length) => break length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Read::Empty,
                Err(_) => return Read::Gone,
            }
        };
        let Some((header, bytes)) = self.buffer[..length].split_first_chunk::<VNET_HEADER>() else {
            return Read::Nonsense;
        };
        match Offload::from_virtio(header) {
            Some(offload) => Read::Frame(Frame {
                bytes: bytes.to_vec(),
                offload,
            }),
            None => Read::Nonsense,
        }
    }

    /// Gives a frame to the kernel, which can finish all that was left over. `false`: it did not take it.
    pub fn write(&self, frame: Frame) -> bool {
        let mut taken = true;
        frame.fit(
            Abilities {
                checksum: true,
                tcp4: true,
                tcp6: true,
            },
            |frame| {
                let header = frame.offload.to_virtio(header_length(&frame));
                let parts = [IoSlice::new(&header), IoSlice::new(&frame.bytes)];
                loop {
                    match nix::sys::uio::writev(&self.fd, &parts) {
                        Err(Errno::EINTR) => {}
                        Ok(_) => break,
                        Err(_) => {
                            taken = false;
                            break;
                        }
                    }
                }
            },
        );
        taken
    }
}

/// Length of all headers up to TCP's, for frames that are to be cut.
pub(super) fn header_length(frame: &Frame) -> u16 {
    match (frame.offload.segments, frame.offload.checksum) {
        (Some(_), Some(checksum)) => {
            let tcp = usize::from(checksum.start);
            let data_offset = frame
                .bytes
                .get(tcp + 12)
                .map_or(20, |byte| u16::from(byte >> 4) * 4);
            checksum.start + data_offset
        }
        _ => 0,
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

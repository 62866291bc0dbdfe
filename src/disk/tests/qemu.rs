//! The served volume under the real monitor: QEMU boots from it, and goes on when the backend is killed.

mod driver;

use std::{
    fs,
    io::Read,
    os::unix::{fs::FileExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use driver::listen;

/// A boot sector that says `OK` on the serial line, then reads sector 1 again and again by BIOS calls and says `.` for each success
/// and `!` for each failure.
#[rustfmt::skip]
const PROGRAM: [u8; 45] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0,       // xor ax, ax; mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x7c,                         // mov sp, 0x7c00
    0x88, 0x16, 0x80, 0x7d,                   // mov [0x7d80], dl: the boot drive
    0xba, 0xf8, 0x03,                         // mov dx, 0x3f8: the serial port
    0xb0, b'O', 0xee, 0xb0, b'K', 0xee,       // out dx, 'O'; out dx, 'K'
    0xb4, 0x42, 0x8a, 0x16, 0x80, 0x7d,       // again: mov ah, 0x42; mov dl, [0x7d80]
    0xbe, 0x90, 0x7d, 0xcd, 0x13,             // mov si, 0x7d90; int 0x13
    0xba, 0xf8, 0x03, 0xb0, b'.', 0x73, 0x02, // mov dx, 0x3f8; mov al, '.'; jnc +2
    0xb0, b'!', 0xee,                         // mov al, '!'; out dx, al
    0xeb, 0xe9,                               // jmp again
];
/// The disk address packet: one sector, to 0000:8000, from LBA 1.
const PACKET: [u8; 16] = [16, 0, 1, 0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `torture_disk --backend` serves 8 MiB from the descriptors 3, 4 and 5.
fn backend(descriptors: &[std::os::fd::OwnedFd; 3]) -> Running {
    use std::os::fd::AsRawFd;
    let test = std::env::current_exe().unwrap();
    let program = test
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples/torture_disk");
    let mut command = Command::new(program);
    command.arg("--backend").stdin(Stdio::null());
    let from = descriptors.each_ref().map(AsRawFd::as_raw_fd);
    // SAFETY: only dup2, which is async-signal-safe, is called between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            for (i, fd) in (0..).zip(from) {
                if libc::dup2(fd, 100 + i) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            for i in 0..3 {
                if libc::dup2(100 + i, 3 + i) < 0 || libc::close(100 + i) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Running(
        command
            .spawn()
            .expect("cargo build -p allod-disk --example torture_disk"),
    )
}

#[test]
fn qemu_boots_from_it_and_survives_the_death_of_its_backend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    let volume = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    volume.set_len(8 << 20).unwrap();
    volume.write_all_at(&PROGRAM, 0).unwrap();
    volume.write_all_at(&PACKET, 0x190).unwrap();
    volume.write_all_at(&[0x55, 0xaa], 510).unwrap();
    let descriptors = [
        volume.into(),
        listen(&dir.path().join("vhost")).unwrap(),
        listen(&dir.path().join("control")).unwrap(),
    ];
    let first = backend(&descriptors);
    let socket = format!(
        "socket,id=disk,path={},reconnect=1",
        dir.path().join("vhost").display()
    );
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-machine",
            "q35",
            "-m",
            "64",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args([
            "-object",
            "memory-backend-memfd,id=mem,size=64M,share=on",
            "-numa",
            "node,memdev=mem",
        ])
        .args([
            "-chardev",
            &socket,
            "-device",
            "vhost-user-blk-pci,chardev=disk,num-queues=1,bootindex=0",
        ])
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let mut console = qemu.0.stdout.take().unwrap();
    let mut said = String::new();
    let mut wait_for = |what: &str| {
        said.clear();
        while !said.ends_with(what) {
            let mut byte = [0];
            assert_eq!(console.read(&mut byte).unwrap(), 1, "QEMU ended after: {said}");
            said.push(char::from(byte[0]));
            assert!(!said.ends_with('!'), "a read failed after: {said}");
        }
    };
    wait_for("OK");
    wait_for(&".".repeat(100));
    drop(first);
    let second = backend(&descriptors);
    // More than the serial line can hold back, so that reads of the second backend are among them.
    wait_for(&".".repeat(5000));
    let status = driver::control(&dir.path().join("control"))
        .call(&model::disk::DiskRequest::Status, &[])
        .unwrap();
    assert!(
        status.connected && status.reads > 1000 && status.errors == 0,
        "{status:?}"
    );
    drop((qemu, second));
}

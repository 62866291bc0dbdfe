//! The embedded monitor, with guests of a few KiB that tell what they see. Without a usable KVM every test says that it
//! was skipped.

#[path = "kvm/devices.rs"]
mod devices;
#[path = "kvm/firmware.rs"]
mod firmware;
#[path = "guests/mod.rs"]
mod guests;
#[path = "kvm/net.rs"]
mod net;
#[path = "probe/storage.rs"]
mod storage;

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use model::machine::StopMode;
use vmm::kvm::{
    Boot, Control, CpuModel, Ending, Kernel, Machine, MachineError, Offer, Spec, State, Status, probe,
};

/// Longer than anything here takes, on a busy machine with an emulated processor.
const LONG: Duration = Duration::from_secs(300);

/// Longer than a real kernel takes, on a host that emulates it and is busy with other tests.
const VERY_LONG: Duration = Duration::from_secs(240);

/// What this host's KVM offers, if a machine can be had.
fn usable() -> Option<&'static Offer> {
    static OFFER: OnceLock<Option<Offer>> = OnceLock::new();
    let offer = OFFER.get_or_init(|| match probe() {
        Ok(offer) if offer.lacks().is_empty() => Some(offer),
        Ok(offer) => {
            println!("this KVM lacks {:?}", offer.lacks());
            None
        }
        Err(error) => {
            println!("{error}");
            None
        }
    });
    if offer.is_none() {
        println!("skipped: there is no usable KVM");
    }
    offer.as_ref()
}

/// A machine and what it has printed.
struct Guest {
    machine: Machine,
    printed: Arc<Mutex<Vec<u8>>>,
}

impl Guest {
    fn new(spec: Spec) -> Result<Self, MachineError> {
        let printed = Arc::new(Mutex::new(Vec::new()));
        let there = printed.clone();
        let machine = Machine::new(spec, move |bytes: &[u8]| {
            there.lock().unwrap().extend_from_slice(bytes)
        })?;
        Ok(Guest { machine, printed })
    }

    /// Started, with this command line.
    fn start(command: &str) -> Self {
        let guest = Self::new(spec(command)).unwrap();
        guest.machine.control(Control::Start).unwrap();
        guest
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap()).into_owned()
    }

    /// Wait until it has printed this.
    fn prints(&self, wanted: &str) {
        self.prints_within(LONG, wanted);
    }

    fn prints_within(&self, limit: Duration, wanted: &str) {
        let start = Instant::now();
        while !self.text().contains(wanted) {
            let status = self.machine.status();
            assert!(
                start.elapsed() < limit && !matches!(status.state, State::Ended(_)),
                "{status:?} without {wanted:?}: {:?}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn ends(&self) -> Ending {
        let status = self
            .machine
            .wait(LONG, |status| matches!(status.state, State::Ended(_)));
        match status.state {
            State::Ended(ending) => ending,
            state => panic!("still {state:?}: {:?}", self.text()),
        }
    }
}

fn spec(command: &str) -> Spec {
    Spec {
        kvm: None,
        vcpus: 1,
        memory_mib: 16,
        huge_pages: false,
        cpu: CpuModel::Host,
        boot: kernel(guests::elf(), None, command),
        disks: Vec::new(),
        balloon: false,
        console: None,
        vsock: None,
        nics: Vec::new(),
    }
}

fn kernel(image: File, initrd: Option<File>, command: &str) -> Boot {
    Boot::Kernel(Kernel {
        image,
        initrd,
        command_line: command.into(),
    })
}

#[test]
fn a_pvh_guest_finds_its_memory_its_line_and_its_disk_and_switches_off() {
    if usable().is_none() {
        return;
    }
    let mut initrd: File = tempfile::tempfile().unwrap();
    initrd.write_all(b"a small disk\0").unwrap();
    let mut spec = spec("");
    spec.memory_mib = 5 * 1024;
    spec.boot = kernel(guests::elf(), Some(initrd), "hello there");
    let guest = Guest::new(spec).unwrap();
    assert_eq!(guest.machine.status().state, State::Created);
    guest.machine.control(Control::Start).unwrap();
    assert_eq!(guest.ends(), Ending::PoweredOff);
    assert_eq!(
        guest.text(),
        "map 0000000000000000 000000000009fc00 00000001\n\
         map 000000000009fc00 0000000000060400 00000002\n\
         map 0000000000100000 00000000aff00000 00000001\n\
         map 00000000e0000000 0000000000100000 00000002\n\
         map 0000000100000000 0000000090000000 00000001\n\
         line hello there\n\
         disk 0000000d a small disk\n"
    );
}

#[test]
fn a_bzimage_boots() {
    if usable().is_none() {
        return;
    }
    let mut spec = spec("");
    spec.boot = kernel(guests::bzimage(), None, "quiet");
    let guest = Guest::new(spec).unwrap();
    guest.machine.control(Control::Start).unwrap();
    assert_eq!(guest.ends(), Ending::PoweredOff, "{:?}", guest.text());
    assert_eq!(guest.text(), "linux quiet\n");
}

#[test]
fn a_guest_resets_itself_in_three_ways_and_finds_clean_memory() {
    if usable().is_none() {
        return;
    }
    for command in ["keyboard", "chipset", "triple"] {
        let guest = Guest::start(command);
        let status = guest.machine.wait(LONG, |status| {
            status.resets >= 3 || status.state != State::Running
        });
        assert_eq!(status.state, State::Running, "{command}: {:?}", guest.text());
        guest.machine.control(Control::Stop(StopMode::Hard)).unwrap();
        assert_eq!(guest.ends(), Ending::Stopped);
        let text = guest.text();
        assert!(text.starts_with("boot\nboot\nboot\n"), "{command}: {text:?}");
        assert!(
            !text.contains("ran on") && !text.contains("cleared"),
            "{command}: {text:?}"
        );
    }
}

#[test]
fn the_reset_button_starts_anew_running_or_paused() {
    if usable().is_none() {
        return;
    }
    let guest = Guest::start("neither");
    guest.prints("ready\n");
    guest.machine.control(Control::Reset).unwrap();
    guest.prints("ready\nready\n");
    guest.machine.control(Control::Pause).unwrap();
    guest.machine.control(Control::Reset).unwrap();
    let expected = Status {
        state: State::Paused,
        resets: 2,
    };
    assert_eq!(guest.machine.status(), expected);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.text(), "ready\nready\n", "paused it stays");
    guest.machine.control(Control::Resume).unwrap();
    guest.prints("ready\nready\nready\n");
}

#[test]
fn a_paused_guest_does_nothing_and_goes_on() {
    if usable().is_none() {
        return;
    }
    let guest = Guest::start("spin");
    guest.prints("...");
    for _ in 0..20 {
        guest.machine.control(Control::Pause).unwrap();
        guest.machine.control(Control::Pause).unwrap();
        // What it printed before may still be on its way.
        std::thread::sleep(Duration::from_millis(10));
        let before = guest.text().len();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.text().len(), before);
        guest.machine.control(Control::Resume).unwrap();
        let start = Instant::now();
        while guest.text().len() == before {
            assert!(start.elapsed() < LONG, "it does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn the_power_button_is_pressed_and_obeyed() {
    if usable().is_none() {
        return;
    }
    for paused in [false, true] {
        let guest = Guest::start("press me");
        guest.prints("ready\n");
        if paused {
            guest.machine.control(Control::Pause).unwrap();
        }
        guest
            .machine
            .control(Control::Stop(StopMode::Graceful(LONG)))
            .unwrap();
        assert_eq!(guest.ends(), Ending::PoweredOff);
        assert_eq!(guest.text(), "ready\npressed\n");
    }
}

#[test]
fn a_guest_that_is_deaf_to_the_button_is_stopped_in_time() {
    if usable().is_none() {
        return;
    }
    let guest = Guest::start("no");
    guest.prints("ready\n");
    let start = Instant::now();
    let patience = Duration::from_millis(300);
    guest
        .machine
        .control(Control::Stop(StopMode::Graceful(patience)))
        .unwrap();
    assert_eq!(guest.machine.status().state, State::Running);
    assert_eq!(guest.ends(), Ending::Stopped);
    assert!(start.elapsed() >= patience);
    guest.machine.control(Control::Stop(StopMode::Hard)).unwrap();
}

#[test]
fn a_baseline_boots_where_the_processor_has_it_and_is_refused_where_not() {
    if usable().is_none() {
        return;
    }
    for cpu in [CpuModel::V2, CpuModel::V3, CpuModel::V4] {
        match Guest::new(Spec { cpu, ..spec("hello") }) {
            Ok(guest) => {
                guest.machine.control(Control::Start).unwrap();
                assert_eq!(guest.ends(), Ending::PoweredOff);
                println!("{cpu:?}: boots");
            }
            Err(MachineError::CpuModel(lacks)) => println!("{cpu:?}: this host lacks {lacks}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    if usable().is_none() {
        return;
    }
    for vcpus in [0, 129, u32::MAX] {
        let refused = Guest::new(Spec { vcpus, ..spec("no") });
        assert!(matches!(refused, Err(MachineError::Vcpus { .. })));
    }
    let guest = Guest::new(spec("no")).unwrap();
    for control in [Control::Pause, Control::Resume, Control::Reset] {
        let refused = guest.machine.control(control.clone());
        assert!(
            matches!(refused, Err(MachineError::State(State::Created))),
            "{control:?}"
        );
    }
    guest.machine.control(Control::Start).unwrap();
    let refused = guest.machine.control(Control::Start);
    assert!(matches!(refused, Err(MachineError::State(State::Running))));
    guest.machine.control(Control::Stop(StopMode::Hard)).unwrap();
    let refused = guest.machine.control(Control::Resume);
    assert!(matches!(
        refused,
        Err(MachineError::State(State::Ended(Ending::Stopped)))
    ));

    let mut broken = spec("no");
    broken.boot = kernel(tempfile::tempfile().unwrap(), None, "no");
    let guest = Guest::new(broken).unwrap();
    guest.machine.control(Control::Start).unwrap_err();
    assert!(matches!(guest.ends(), Ending::Failed(_)));
}

#[test]
fn a_guest_that_prints_all_the_time_is_slowed_and_still_obeys() {
    if usable().is_none() {
        return;
    }
    let guest = Guest::start("flood");
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(1500));
    let asked = Instant::now();
    guest.machine.control(Control::Pause).unwrap();
    let waited = asked.elapsed();
    let allowed = vmm::console::BURST + vmm::console::RATE * start.elapsed().as_millis() as u64 / 1000;
    let printed = guest.printed.lock().unwrap().len() as u64;
    assert!(printed > 0 && printed <= allowed, "{printed} of {allowed}");
    assert!(waited < Duration::from_secs(2), "pausing took {waited:?}");
    guest.machine.control(Control::Stop(StopMode::Hard)).unwrap();
}

#[test]
fn wild_accesses_hurt_nobody() {
    if usable().is_none() {
        return;
    }
    let guest = Guest::start("wild");
    assert_eq!(guest.ends(), Ending::PoweredOff, "{:?}", guest.text());
    assert!(guest.text().ends_with("alive\n"), "{:?}", guest.text());
}

/// The environment variable with the path of a kernel that boots on this host's KVM, which `cargo xtask test` sets.
const LINUX: &str = "ALLOD_KVM_LINUX";
/// The environment variable with what must stand on that kernel's command line.
const LINUX_LINE: &str = "ALLOD_KVM_LINUX_LINE";
/// The environment variable with the modules that the kernel must load to see the entropy device, as a search path.
const LINUX_MODULES: &str = "ALLOD_KVM_LINUX_MODULES";

/// A real kernel for this host's KVM, and the modules that it must load.
fn linux() -> Option<(File, Vec<std::path::PathBuf>)> {
    usable()?;
    let Some(image) = std::env::var_os(LINUX) else {
        println!("skipped: {LINUX} names no kernel");
        return None;
    };
    let modules = std::env::var_os(LINUX_MODULES);
    let modules = modules.iter().flat_map(std::env::split_paths).collect();
    Some((File::open(image).unwrap(), modules))
}

/// What it boots with: this first process, which does what `action` says.
fn linux_boot(image: File, initrd: File, action: &str) -> Boot {
    let line = std::env::var(LINUX_LINE).unwrap_or_else(|_| "console=ttyS0 panic=-1".into());
    kernel(image, Some(initrd), &format!("{line} -- {action}"))
}

/// The same for a first process that loads no modules: the kernel must have all drivers built in.
fn linux_without_modules(initrd: File, action: &str) -> Option<Boot> {
    let (image, modules) = linux()?;
    if !modules.is_empty() {
        println!("skipped: {LINUX} names a kernel whose drivers are modules");
        return None;
    }
    Some(linux_boot(image, initrd, action))
}

#[test]
fn linux_boots_finds_what_acpi_tells_gets_entropy_restarts_and_switches_off() {
    let Some((image, modules)) = linux() else { return };
    for action in ["restart", "off"] {
        let mut spec = spec("");
        spec.memory_mib = 128;
        spec.boot = linux_boot(image.try_clone().unwrap(), guests::initramfs(&modules), action);
        let guest = Guest::new(spec).unwrap();
        let start = Instant::now();
        guest.machine.control(Control::Start).unwrap();
        guest.prints_within(VERY_LONG, "HELLO-FROM-GUEST");
        println!("{action}: userland after {:?}", start.elapsed());
        guest.prints("ENTROPY-FROM-DEVICE");
        let text = guest.text();
        for wanted in [
            "ACPI: RSDP 0x00000000000E0000",
            "ACPI: Interpreter enabled",
            "PCI host bridge to bus 0000:00",
            "ttyS0 at I/O 0x3f8",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in {text}");
        }
        // Linux 6.1 says MMCONFIG.
        assert!(text.contains("ECAM") || text.contains("MMCONFIG"), "{text}");
        for unwanted in [
            "ACPI Error",
            "ACPI BIOS Error",
            "ACPI Exception",
            "[Firmware Bug]",
        ] {
            assert!(!text.contains(unwanted), "{unwanted:?} is in {text}");
        }
        if action == "off" {
            assert_eq!(guest.ends(), Ending::PoweredOff, "{text}");
        } else {
            let status = guest.machine.wait(LONG, |status| {
                status.resets == 1 || status.state != State::Running
            });
            assert_eq!((status.resets, status.state), (1, State::Running), "{text}");
        }
    }
}

#[test]
fn all_processors_start() {
    let Some(offer) = usable() else { return };
    for vcpus in [2u32, 4] {
        let guest = Guest::new(Spec {
            vcpus,
            ..spec(&format!("m{vcpus}"))
        })
        .unwrap();
        guest.machine.control(Control::Start).unwrap();
        assert_eq!(guest.ends(), Ending::PoweredOff);
        let started = if offer.starts_processors { vcpus - 1 } else { 0 };
        assert_eq!(guest.text(), format!("started {started:08x}\n"));
        if !offer.starts_processors {
            println!("skipped: this KVM starts no second processor");
        }
    }
}

#[test]
fn a_machine_that_is_dropped_in_any_state_leaves_nothing_behind() {
    if usable().is_none() {
        return;
    }
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter(|task| {
                let name = task.as_ref().unwrap().path().join("comm");
                std::fs::read_to_string(name).is_ok_and(|name| name.trim() == "vcpu99")
            })
            .count()
    };
    for controls in [
        &[][..],
        &[Control::Start],
        &[Control::Start, Control::Pause],
        &[Control::Start, Control::Stop(StopMode::Hard)],
    ] {
        let guest = Guest::new(Spec {
            vcpus: 100,
            ..spec("spin")
        })
        .unwrap();
        for control in controls {
            guest.machine.control(control.clone()).unwrap();
        }
        drop(guest);
        assert_eq!(threads(), 0, "{controls:?}");
    }
}

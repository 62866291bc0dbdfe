//! System-call filters (seccomp(2)): what each kind of child needs, by name.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use serde::{Deserialize, Serialize};

use super::{Enforcement, JailError};

/// The system calls that a kind of child needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Threads, memory, events, and reading and writing descriptors that it was given.
    Basic,
    /// `Basic` and io_uring (`allod disk`).
    Disk,
    /// `Basic` and what TAP devices need (`allod switch`).
    Switch,
    /// `Disk`, KVM, and connections to Unix sockets that the jail shows (`allod vmm`).
    Vmm,
    /// The parent of QEMU: what QEMU itself needs, too; QEMU's own sandbox takes away more.
    Guest,
}

/// Threads, memory, events, and reading and writing given descriptors.
const BASIC: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_sendfile,
    libc::SYS_flock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_restart_syscall,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_arch_prctl,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_times,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
];

const IO_URING: &[i64] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// What QEMU 7.2 and its supervisor need beyond `BASIC`. Opening files is allowed: the jail shows only QEMU's own.
const GUEST: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_umask,
    libc::SYS_statfs,
    libc::SYS_ioctl,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_eventfd,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_vfork,
    libc::SYS_fork,
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_seccomp,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_setsid,
    libc::SYS_getsid,
    libc::SYS_getpgid,
    libc::SYS_getpgrp,
    libc::SYS_setpgid,
    libc::SYS_getpriority,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_epoll_create,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fchmod,
    libc::SYS_unlink,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigpending,
    libc::SYS_pause,
    libc::SYS_alarm,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy,
    libc::SYS_mlockall,
    libc::SYS_userfaultfd,
    libc::SYS_landlock_create_ruleset,
];

/// What libraries try of their own accord, and live without: answered with "not permitted" instead of death.
const REFUSED: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_getcwd,
    libc::SYS_prlimit64,
];

/// Requests of ioctl(2) for which no constant is in `libc`: TUNGETIFF, TUNGETFEATURES, TUNSETOFFLOAD, TUNSETVNETHDRSZ.
const TUN_IOCTLS: &[u64] = &[0x8004_54d2, 0x8004_54cf, 0x4004_54d0, 0x4004_54d8];

/// BLKGETSIZE64: the size of a block device.
const BLKGETSIZE64: u64 = 0x8008_1272;

/// The type of KVM's ioctls, and the numbers of those that a machine takes (`linux/kvm.h`).
const KVM: u64 = 0xae00;
const KVM_NUMBERS: &[u64] = &[
    0x00, // GET_API_VERSION
    0x01, // CREATE_VM
    0x02, // GET_MSR_INDEX_LIST
    0x03, // CHECK_EXTENSION
    0x04, // GET_VCPU_MMAP_SIZE
    0x05, // GET_SUPPORTED_CPUID
    0x41, // CREATE_VCPU
    0x42, // GET_DIRTY_LOG
    0x46, // SET_USER_MEMORY_REGION
    0x47, // SET_TSS_ADDR
    0x48, // SET_IDENTITY_MAP_ADDR
    0x60, // CREATE_IRQCHIP
    0x61, // IRQ_LINE
    0x62, // GET_IRQCHIP
    0x63, // SET_IRQCHIP
    0x6a, // SET_GSI_ROUTING
    0x76, // IRQFD
    0x77, // CREATE_PIT2
    0x79, // IOEVENTFD
    0x7b, // SET_CLOCK
    0x7c, // GET_CLOCK
    0x80, // RUN
    0x81, // GET_REGS
    0x82, // SET_REGS
    0x83, // GET_SREGS
    0x84, // SET_SREGS
    0x88, // GET_MSRS
    0x89, // SET_MSRS
    0x8c, // GET_FPU
    0x8d, // SET_FPU
    0x8e, // GET_LAPIC
    0x8f, // SET_LAPIC
    0x90, // SET_CPUID2
    0x98, // GET_MP_STATE
    0x99, // SET_MP_STATE
    0x9f, // GET_VCPU_EVENTS, GET_PIT2
    0xa0, // SET_VCPU_EVENTS, SET_PIT2
    0xa1, // GET_DEBUGREGS
    0xa2, // SET_DEBUGREGS, SET_TSC_KHZ
    0xa3, // GET_TSC_KHZ
    0xa4, // GET_XSAVE
    0xa5, // SET_XSAVE
    0xa6, // GET_XCRS
    0xa7, // SET_XCRS
    0xad, // KVMCLOCK_CTRL
];

/// KVM's ioctls that make a machine: no vCPU needs them.
const KVM_MAKING: &[u64] = &[0x01, 0x41, 0x46, 0x47, 0x48, 0x60, 0x77];

/// A thread that needs less than its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Thread {
    /// A vCPU of `allod vmm`, which drives the machine's devices: all but what makes a machine.
    Vcpu,
    /// A device's thread: events, memory, and reading and writing descriptors that it has.
    Device,
}

/// What is taken from both kinds of threads.
const NOT_OF_THREADS: &[i64] = &[
    libc::SYS_memfd_create,
    libc::SYS_signalfd4,
    libc::SYS_sched_setaffinity,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_sendfile,
    libc::SYS_flock,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_seccomp,
];

/// What is taken from devices' threads beyond that.
const NOT_OF_DEVICES: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_ftruncate,
    libc::SYS_tgkill,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_pipe2,
    libc::SYS_timerfd_create,
    libc::SYS_setsockopt,
];

/// Lock this thread further in, and all that it makes. The process must be in its jail.
pub(super) fn narrow(thread: Thread, enforcement: Enforcement) -> Result<(), JailError> {
    // Made once: machines start in a few milliseconds.
    static PROGRAMS: [OnceLock<Result<BpfProgram, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let program = PROGRAMS[thread as usize].get_or_init(|| {
        let text = |error: seccompiler::BackendError| error.to_string();
        let mut rules = allowed(Profile::Vmm, enforcement == Enforcement::Kill).map_err(text)?;
        rules.retain(|call, _| !NOT_OF_THREADS.contains(call));
        // A filter that lies beneath lets this through with its own answer.
        let kvm = |number: &u64| argument(1, SeccompCmpOp::MaskedEq(0xffff), KVM | number);
        match thread {
            Thread::Vcpu => {
                // The last thing that a new thread of a device does before it runs is to be narrowed itself.
                rules.insert(libc::SYS_seccomp, Vec::new());
                let mut ioctls = plain_ioctls().map_err(text)?;
                for number in KVM_NUMBERS.iter().filter(|number| !KVM_MAKING.contains(number)) {
                    ioctls.push(kvm(number).map_err(text)?);
                }
                rules.insert(libc::SYS_ioctl, ioctls);
            }
            Thread::Device => {
                rules.retain(|call, _| !NOT_OF_DEVICES.contains(call));
                rules.insert(libc::SYS_ioctl, plain_ioctls().map_err(text)?);
            }
        }
        program(rules, enforcement.otherwise(), SeccompAction::Allow).map_err(|error| error.to_string())
    });
    match program {
        Ok(program) => apply_filter(program).map_err(|error| JailError::Seccomp(error.to_string())),
        Err(error) => Err(JailError::Seccomp(error.clone())),
    }
}

/// ioctl(2) on descriptors of any kind.
fn plain_ioctls() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS]
        .into_iter()
        .map(|request| argument(1, SeccompCmpOp::Eq, request))
        .collect()
}

fn program(
    rules: Rules,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?.try_into()
}

impl Enforcement {
    /// What happens at a system call that is not allowed.
    fn otherwise(self) -> SeccompAction {
        match self {
            Enforcement::Kill => SeccompAction::KillProcess,
            Enforcement::Log => SeccompAction::Log,
        }
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Apply the profile to this thread and all that it makes.
pub(super) fn filter(profile: Profile, enforcement: Enforcement) -> Result<(), JailError> {
    let failed = |error: &dyn std::fmt::Display| JailError::Seccomp(error.to_string());
    let answers = profile != Profile::Guest && enforcement == Enforcement::Kill;
    let allowed = allowed(profile, answers).map_err(|e| failed(&e))?;
    let mut filters = Vec::new();
    if answers {
        let refused: Rules = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
        filters.push((
            refused,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        ));
        // Its flags lie in memory, where a filter cannot look: the C library falls back to clone.
        let clone3: Rules = [(libc::SYS_clone3, Vec::new())].into();
        filters.push((
            clone3,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        ));
    }
    // The strictest last: it does not allow making filters.
    filters.push((allowed, enforcement.otherwise(), SeccompAction::Allow));
    for (rules, mismatch, matched) in filters {
        let program = program(rules, mismatch, matched).map_err(|e| failed(&e))?;
        apply_filter(&program).map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// `answers`: two more filters are there to refuse a few system calls without killing.
fn allowed(profile: Profile, answers: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = BASIC.iter().map(|&call| (call, Vec::new())).collect();
    if profile == Profile::Guest {
        rules.extend(GUEST.iter().map(|&call| (call, Vec::new())));
        return Ok(rules);
    }
    if answers {
        // Let through here so that the others decide.
        rules.extend(
            REFUSED
                .iter()
                .chain([&libc::SYS_clone3])
                .map(|&call| (call, Vec::new())),
        );
    }
    let disk = matches!(profile, Profile::Disk | Profile::Vmm);
    if disk {
        rules.extend(IO_URING.iter().map(|&call| (call, Vec::new())));
    }
    // Threads, but no processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(
        libc::SYS_clone,
        vec![argument(0, SeccompCmpOp::MaskedEq(thread), thread)?],
    );
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![argument(0, SeccompCmpOp::Eq, own)?]);
    let name = u64::from(libc::PR_SET_NAME.unsigned_abs());
    // Threads name themselves, and the allocator names the memory that it maps; it does so whenever it needs more.
    let memory = libc::PR_SET_VMA as u64;
    let mut prctls = vec![
        argument(0, SeccompCmpOp::Eq, name)?,
        argument(0, SeccompCmpOp::Eq, memory)?,
    ];
    let mut ioctls = plain_ioctls()?;
    if disk {
        ioctls.push(argument(1, SeccompCmpOp::Eq, BLKGETSIZE64)?);
    }
    if profile == Profile::Switch {
        for request in TUN_IOCTLS {
            ioctls.push(argument(1, SeccompCmpOp::Eq, *request)?);
        }
    }
    if profile == Profile::Vmm {
        // Threads lock themselves further in (`narrow`).
        rules.insert(libc::SYS_seccomp, Vec::new());
        let no_new_privileges = u64::from(libc::PR_SET_NO_NEW_PRIVS.unsigned_abs());
        prctls.push(argument(0, SeccompCmpOp::Eq, no_new_privileges)?);
        for number in KVM_NUMBERS {
            ioctls.push(argument(1, SeccompCmpOp::MaskedEq(0xffff), KVM | number)?);
        }
        // The network devices connect to the switch, again whenever it is replaced.
        let unix = u64::from(libc::AF_UNIX.unsigned_abs());
        rules.insert(libc::SYS_socket, vec![argument(0, SeccompCmpOp::Eq, unix)?]);
        rules.insert(libc::SYS_connect, Vec::new());
    }
    rules.insert(libc::SYS_prctl, prctls);
    rules.insert(libc::SYS_ioctl, ioctls);
    Ok(rules)
}

fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?])
}

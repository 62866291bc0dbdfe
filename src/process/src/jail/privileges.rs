//! Resource limits, user, capabilities, Landlock.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use tracing::debug;

use super::{Files, JailError, Limits, Step};

pub(super) fn set_limits(limits: &Limits) -> Result<(), JailError> {
    let all = [
        (Resource::Core, Some(0)),
        (Resource::Nofile, Some(limits.open_files)),
        (Resource::Nproc, Some(limits.processes)),
        (Resource::As, limits.address_space),
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Fsize, limits.file_size),
    ];
    for (resource, wanted) in all {
        let Some(wanted) = wanted else { continue };
        // A limit can be lowered, but not raised above the one that this process was given.
        let value = getrlimit(resource)
            .maximum
            .map_or(wanted, |maximum| maximum.min(wanted));
        setrlimit(
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        )
        .step("resource limits")?;
    }
    Ok(())
}

/// Become a user without any rights, for good.
pub(super) fn drop_all(uid: u32) -> Result<(), JailError> {
    for capability in CapabilitySet::all().iter() {
        // Numbers that this kernel does not know are not in its set.
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability).step("capability bounding set")?;
        }
    }
    clear_ambient_capability_set().step("ambient capabilities")?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[]).step("groups")?;
    setresgid(group, group, group).step("group")?;
    setresuid(user, user, user).step("user")?;
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
    .step("capabilities")?;
    set_no_new_privs(true).step("no_new_privs")?;
    // Nobody of the same user may trace it or read its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("dumpable")
}

/// The kernel's answer to "what if a mount or descriptor leaked in": nothing but what is shown can be opened.
/// An older kernel enforces what it knows of this.
pub(super) fn landlock(files: &Files) -> Result<(), JailError> {
    let abi = ABI::V6;
    let failed = |error: &dyn std::fmt::Display| JailError::Landlock(error.to_string());
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|r| r.handle_access(AccessNet::from_all(abi)))
        .and_then(|r| r.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .map_err(|e| failed(&e))?;
    let read = AccessFs::from_read(abi);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let readable = files
        .read_only
        .iter()
        .chain(files.folder.iter().map(|(_, child)| child));
    for (path, access) in readable
        .map(|p| (p, read))
        .chain(files.devices.iter().map(|p| (p, device)))
    {
        let Ok(descriptor) = PathFd::new(path) else {
            continue;
        };
        let is_file = std::fs::metadata(path).is_ok_and(|m| !m.is_dir());
        let access = if is_file {
            access & AccessFs::from_file(abi)
        } else {
            access
        };
        rules = rules
            .add_rule(PathBeneath::new(descriptor, access))
            .map_err(|e| failed(&e))?;
    }
    let status = rules.restrict_self().map_err(|e| failed(&e))?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        debug!(status = ?status.ruleset, "this kernel's Landlock does not know every restriction");
    }
    Ok(())
}

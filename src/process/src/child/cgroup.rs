//! A cgroup per child, set up by the daemon from outside: best effort, since it depends on what was delegated to it.
//!
//! Version 2 (one hierarchy) and version 1 (one per controller) are both served: a child's group lies in the folder
//! `allod-children` below the daemon's own group of each hierarchy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::debug;

/// Bounds on a whole child, its own children included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

const FOLDER: &str = "allod-children";

/// A hierarchy that the daemon can make groups in.
struct Hierarchy {
    /// The folder for all children.
    parent: PathBuf,
    unified: bool,
}

/// Put a process into a group of its own. What cannot be done is said in the log.
pub(super) fn confine(name: &str, pid: i32, limits: CgroupLimits) {
    for hierarchy in hierarchies() {
        if let Err(error) = confine_in(&hierarchy, name, pid, limits) {
            debug!(cgroup = %hierarchy.parent.display(), %error, "no cgroup for the child: not delegated");
        }
    }
}

/// Remove the groups of a child that has ended.
pub(super) fn remove(name: &str) {
    for hierarchy in hierarchies() {
        let group = hierarchy.parent.join(name);
        // The kernel takes a process out of its group some microseconds after it tells of the process's end.
        for _ in 0..100 {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(1))
                }
                _ => break,
            }
        }
        let _ = fs::remove_dir(&hierarchy.parent);
    }
}

fn confine_in(hierarchy: &Hierarchy, name: &str, pid: i32, limits: CgroupLimits) -> io::Result<()> {
    let group = hierarchy.parent.join(name);
    fs::create_dir_all(&group)?;
    if hierarchy.unified {
        // Controllers that are not there, or cannot be passed on, leave their files out.
        let above = hierarchy.parent.parent().map(Path::to_path_buf);
        for folder in above.iter().chain([&hierarchy.parent]) {
            for controller in ["+memory", "+pids"] {
                let _ = fs::write(folder.join("cgroup.subtree_control"), controller);
            }
        }
    }
    let memory = if hierarchy.unified {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    for (file, value) in [(memory, limits.memory), ("pids.max", limits.processes)] {
        let path = group.join(file);
        if let Some(value) = value
            && path.exists()
        {
            fs::write(path, value.to_string())?;
        }
    }
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

fn hierarchies() -> Vec<Hierarchy> {
    let (Ok(groups), Ok(mounts)) = (
        fs::read_to_string("/proc/self/cgroup"),
        fs::read_to_string("/proc/self/mounts"),
    ) else {
        return Vec::new();
    };
    find_hierarchies(&groups, &mounts)
}

/// From proc(5): lines `number:controllers:path`; and `device folder type options …`.
fn find_hierarchies(groups: &str, mounts: &str) -> Vec<Hierarchy> {
    let mount_of = |kind: &str, option: Option<&str>| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, folder, found, options) =
                (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let fits = found == kind && option.is_none_or(|o| options.split(',').any(|x| x == o));
            fits.then(|| PathBuf::from(folder))
        })
    };
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mount, unified) = match controllers {
            "" if number == "0" => (mount_of("cgroup2", None), true),
            "memory" | "pids" => (mount_of("cgroup", Some(controllers)), false),
            _ => continue,
        };
        // A path with `..` lies outside of what this cgroup namespace may see.
        if let Some(mount) = mount
            && !path.contains("..")
        {
            found.push(Hierarchy {
                parent: mount.join(path.trim_start_matches('/')).join(FOLDER),
                unified,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let groups = "8:pids:/service\n5:devices:/\n4:memory:/\n0::/system.slice/allod.service\n";
        let found = find_hierarchies(groups, mounts);
        let paths: Vec<_> = found
            .iter()
            .map(|h| (h.parent.to_str().unwrap(), h.unified))
            .collect();
        assert_eq!(
            paths,
            [
                ("/sys/fs/cgroup/pids/service/allod-children", false),
                (
                    "/sys/fs/cgroup/unified/system.slice/allod.service/allod-children",
                    true
                ),
            ]
        );
        assert!(find_hierarchies("0::/../escape\n", mounts).is_empty());
    }
}

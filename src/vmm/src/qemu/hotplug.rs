//! Devices that come and go while a guest runs.
//!
//! A device is known by its socket's file name: `<socket>` is the block node or the character device, `<socket>-peer` a network
//! interface's other end, `<socket>-device` what the guest sees. So the next daemon, or a repeated call, finds it again by asking QEMU.
//!
//! ```text
//!   plug:    back end (blockdev-add | chardev-add, netdev_add) ──▶ device_add into the first free slot
//!   unplug:  device_del, again every 5 s ──▶ DEVICE_DELETED ──▶ back end removed ──▶ answer
//! ```

use std::path::Path;
use std::time::Duration;

use model::disk::DiskTransport;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::owner::ask;
use super::{Qmp, QmpError, command};
use crate::fleet::Answer;
use crate::{Accelerator, EngineError, PlannedDevice, PlannedDisk, PlannedNic};

/// Guests that are still booting miss the request: it is repeated after this long.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long a guest may take to let go.
const LET_GO: Duration = Duration::from_secs(45);
/// The most slots that a machine has.
const MAX_SLOTS: usize = 64;
/// How often, and how fast, a disk's new size is looked for.
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(100);

/// A device that a guest was asked to let go of.
pub(super) struct Unplugging {
    socket: String,
    again: Instant,
    end: Instant,
    answer: Answer,
}

impl Unplugging {
    /// When something has to be done about it.
    pub(super) fn due(&self) -> Instant {
        self.again.min(self.end)
    }

    /// It is gone.
    pub(super) fn done(self) {
        let _ = self.answer.send(Ok(()));
    }
}

fn device_name(socket: &str) -> String {
    format!("{socket}-device")
}

fn peer_name(socket: &str) -> String {
    format!("{socket}-peer")
}

/// The guest sees the device.
async fn is_there(qmp: &mut Option<Qmp>, socket: &str) -> Result<bool, EngineError> {
    let known = ask(qmp, "qom-list", json!({"path": "/machine/peripheral"})).await?;
    let name = device_name(socket);
    Ok(known
        .as_array()
        .is_some_and(|list| list.iter().any(|item| item["name"] == name.as_str())))
}

/// A refusal is no failure where a repeated call may have done it before.
fn unless_refused(result: Result<Value, EngineError>) -> Result<(), EngineError> {
    match result {
        Ok(_) | Err(EngineError::Monitor(QmpError::Refused { .. })) => Ok(()),
        Err(error) => Err(error),
    }
}

/// See [`crate::Engine::plug`].
pub(super) async fn plug(
    qmp: &mut Option<Qmp>,
    accelerator: Accelerator,
    sockets: &Path,
    device: &PlannedDevice,
) -> Result<(), EngineError> {
    if is_there(qmp, device.socket()).await? {
        return Ok(());
    }
    // What an earlier try may have left.
    remove_back_ends(qmp, device.socket()).await?;
    let path = sockets.join(device.socket()).display().to_string();
    let added = match device {
        PlannedDevice::Disk(disk) => add_disk(qmp, accelerator, &path, disk).await,
        PlannedDevice::Nic(nic) => add_nic(qmp, accelerator, &path, nic).await,
    };
    if added.is_err() {
        let _ = remove_back_ends(qmp, device.socket()).await;
    }
    added
}

async fn add_chardev(qmp: &mut Option<Qmp>, name: &str, path: &str) -> Result<(), EngineError> {
    let backend = json!({"type": "socket", "data": {
        "addr": {"type": "unix", "data": {"path": path}},
        "server": false,
        "reconnect": 1,
    }});
    ask(qmp, "chardev-add", json!({"id": name, "backend": backend}))
        .await
        .map(drop)
}

async fn add_disk(
    qmp: &mut Option<Qmp>,
    accelerator: Accelerator,
    path: &str,
    disk: &PlannedDisk,
) -> Result<(), EngineError> {
    let name = disk.socket.as_str();
    let device = match accelerator {
        Accelerator::Kvm => {
            add_chardev(qmp, name, path).await?;
            json!({"driver": "vhost-user-blk-pci", "chardev": name, "num-queues": disk.queues})
        }
        Accelerator::Tcg => {
            let node = json!({
                "driver": "nbd",
                "node-name": name,
                "server": {"type": "unix", "path": path},
                "reconnect-delay": 86400,
                "auto-read-only": true,
                "discard": "unmap",
            });
            ask(qmp, "blockdev-add", node).await?;
            json!({"driver": "virtio-blk-pci", "drive": name, "num-queues": 1, "serial": disk.serial})
        }
    };
    add_device(qmp, name, device).await
}

async fn add_nic(
    qmp: &mut Option<Qmp>,
    accelerator: Accelerator,
    path: &str,
    nic: &PlannedNic,
) -> Result<(), EngineError> {
    let name = nic.socket.as_str();
    add_chardev(qmp, name, path).await?;
    let peer = json!({"type": "vhost-user", "id": peer_name(name), "chardev": name, "queues": 1});
    ask(qmp, "netdev_add", peer).await?;
    let mut device = json!({
        "driver": "virtio-net-pci",
        "netdev": peer_name(name),
        "mac": nic.mac.to_string(),
        "host_mtu": nic.mtu,
        "romfile": "",
    });
    // As on the command line.
    if accelerator == Accelerator::Tcg {
        device["vectors"] = 0.into();
    }
    add_device(qmp, name, device).await
}

/// Puts a device into the first slot that is free.
///
/// Slots are looked at, not tried. When QEMU refuses a `device_add` it waits until every vCPU has left its RCU read section, which
/// under TCG lasts until something interrupts the vCPU. It kicks vCPUs for that (its issue 650), but only as it begins to wait for
/// them: if its RCU thread waits already, nobody is kicked, and the timers that could interrupt the guest are run by the very thread
/// that waits. The monitor is then silent until the guest rests by itself, maybe for ever. Seen with 7.2.22; QEMU's "rcu: Unify
/// force quiescent state" (after 10.1) mends it. Before 7.2.11, QEMU waited after a `device_add` that succeeded as well.
async fn add_device(qmp: &mut Option<Qmp>, socket: &str, mut device: Value) -> Result<(), EngineError> {
    device["id"] = device_name(socket).into();
    device["disable-legacy"] = "on".into();
    // Left to itself, QEMU 7.2 would take the second place on a port that has but one.
    device["addr"] = "0x0".into();
    device["bus"] = free_slot(qmp).await?.into();
    ask(qmp, "device_add", device).await.map(drop)
}

async fn free_slot(qmp: &mut Option<Qmp>) -> Result<String, EngineError> {
    for index in 0..MAX_SLOTS {
        let slot = command::slot(index);
        // A port's bus has the port's name.
        let bus = json!({"path": format!("/machine/peripheral/{slot}/{slot}")});
        match ask(qmp, "qom-list", bus).await {
            Ok(properties) if has_device(&properties) => {}
            Ok(_) => return Ok(slot),
            // There are no more.
            Err(EngineError::Monitor(QmpError::Refused { .. })) => break,
            Err(error) => return Err(error),
        }
    }
    Err(EngineError::NoSlot)
}

/// A bus's devices are its properties `child[0]` and so on: also those that a guest was asked to let go of, until they are gone.
fn has_device(bus: &Value) -> bool {
    let is_child = |name: &str| name.starts_with("child[");
    // What cannot be understood is not taken for free.
    bus.as_array()
        .is_none_or(|list| list.iter().any(|item| item["name"].as_str().is_none_or(is_child)))
}

/// See [`crate::Engine::unplug`]; the answer comes when the guest has let go.
pub(super) async fn unplug(
    unplugging: &mut Vec<Unplugging>,
    qmp: &mut Option<Qmp>,
    socket: String,
    answer: Answer,
) {
    let asked = match is_there(qmp, &socket).await {
        Ok(true) => {
            unless_refused(ask(qmp, "device_del", json!({"id": device_name(&socket)})).await).map(|()| true)
        }
        Ok(false) => remove_back_ends(qmp, &socket).await.map(|()| false),
        Err(error) => Err(error),
    };
    match asked {
        Ok(true) => {
            let now = Instant::now();
            unplugging.push(Unplugging {
                socket,
                again: now + ASK_AGAIN,
                end: now + LET_GO,
                answer,
            });
        }
        Ok(false) => drop(answer.send(Ok(()))),
        Err(error) => drop(answer.send(Err(error))),
    }
}

/// A guest has let go of this device.
pub(super) async fn gone(unplugging: &mut Vec<Unplugging>, qmp: &mut Option<Qmp>, device: &str) {
    let (gone, kept): (Vec<_>, Vec<_>) = unplugging
        .drain(..)
        .partition(|other| device_name(&other.socket) == device);
    *unplugging = kept;
    for one in gone {
        let removed = remove_back_ends(qmp, &one.socket).await;
        let _ = one.answer.send(removed);
    }
}

/// Repeats requests that are due, and gives up on those that took too long.
pub(super) async fn ask_again(unplugging: &mut Vec<Unplugging>, qmp: &mut Option<Qmp>) {
    let now = Instant::now();
    for mut one in std::mem::take(unplugging) {
        if one.due() > now {
            unplugging.push(one);
            continue;
        }
        // Its event may have been lost with a monitor.
        match is_there(qmp, &one.socket).await {
            Ok(false) => {
                let removed = remove_back_ends(qmp, &one.socket).await;
                let _ = one.answer.send(removed);
            }
            _ if one.end <= now => {
                let _ = one.answer.send(Err(EngineError::Kept(one.socket)));
            }
            _ => {
                let asked = ask(qmp, "device_del", json!({"id": device_name(&one.socket)})).await;
                tracing::info!(
                    device = one.socket,
                    ?asked,
                    "a guest was asked again to let go of a device"
                );
                one.again = now + ASK_AGAIN;
                unplugging.push(one);
            }
        }
    }
}

/// Removes what a device had behind it, whatever it was: QEMU refuses what is not there.
async fn remove_back_ends(qmp: &mut Option<Qmp>, socket: &str) -> Result<(), EngineError> {
    unless_refused(ask(qmp, "netdev_del", json!({"id": peer_name(socket)})).await)?;
    unless_refused(ask(qmp, "blockdev-del", json!({"node-name": socket})).await)?;
    unless_refused(ask(qmp, "chardev-remove", json!({"id": socket})).await)
}

/// See [`crate::Engine::resize`]. A vhost-user device hears of it from the disk's owner. An NBD client learns its server's size when
/// it connects, which it does when it has something to read: so it is given that.
pub(super) async fn resize(
    qmp: &mut Option<Qmp>,
    accelerator: Accelerator,
    socket: &str,
    bytes: u64,
) -> Result<(), EngineError> {
    if command::disk_transport(accelerator) == DiskTransport::VhostUser || !is_there(qmp, socket).await? {
        return Ok(());
    }
    let mut last = None;
    for _ in 0..LOOKS {
        let read = format!("qemu-io {socket} \"read 0 512\"");
        unless_refused(ask(qmp, "human-monitor-command", json!({"command-line": read})).await)?;
        match ask(qmp, "block_resize", json!({"node-name": socket, "size": bytes})).await {
            Ok(_) => return Ok(()),
            Err(error @ EngineError::Monitor(QmpError::Refused { .. })) => last = Some(error),
            Err(error) => return Err(error),
        }
        sleep(LOOK).await;
    }
    last.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_only_if_its_bus_says_so() {
        let plain = json!({"name": "hotplug-handler", "type": "link<hotplug-handler>"});
        let child = json!({"name": "child[3]", "type": "link<virtio-net-pci>"});
        assert!(!has_device(&json!([plain])));
        for taken in [json!([plain, child]), json!([{}]), json!({}), Value::Null] {
            assert!(has_device(&taken), "{taken}");
        }
    }
}

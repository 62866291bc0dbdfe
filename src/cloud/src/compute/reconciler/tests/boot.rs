//! What a server starts with: its image says it, and a rebuild, a rescue and their ends follow.

use model::machine::Boot;

use super::*;
use crate::compute::boot;
use crate::compute::change::Rebuild;

/// The images that `World::furnished` makes.
const OLD: u128 = 7;
const NEW: u128 = 8;

impl World {
    async fn properties(&self, image: u128, properties: &'static str) {
        self.test
            .cloud
            .store
            .write("test", move |conn| {
                let id = Uuid::from_u128(image).to_string();
                Ok::<_, Error>(conn.execute(
                    "UPDATE images SET properties = ?2 WHERE id = ?1",
                    [id.as_str(), properties],
                )?)
            })
            .await
            .unwrap();
    }

    async fn boot_of(&self, properties: &[(&str, &str)]) -> Result<Boot, Error> {
        let properties = properties
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let ctx = self.admin.clone();
        self.test
            .cloud
            .store
            .read(move |conn| boot::of_properties(conn, &ctx, &properties))
            .await
    }

    /// What the machine was started with.
    fn started_with(&self, id: Uuid) -> Boot {
        self.test.drivers.state().machines[&id].0.boot.clone()
    }
}

#[tokio::test]
async fn an_images_properties_say_what_is_started() {
    let world = World::furnished().await;
    let (old, new) = (Uuid::from_u128(OLD), Uuid::from_u128(NEW));
    let (kernel, ramdisk) = (old.to_string(), new.to_string());
    for (properties, expected) in [
        (vec![], Boot::Bios),
        (vec![("hw_firmware_type", "bios")], Boot::Bios),
        (vec![("hw_firmware_type", "uefi")], Boot::Uefi),
        (vec![("kernel_id", ""), ("ramdisk_id", "nonsense")], Boot::Bios),
        (
            vec![("kernel_id", kernel.as_str()), ("hw_firmware_type", "uefi")],
            Boot::Kernel {
                kernel: old,
                ramdisk: None,
                command_line: "root=/dev/vda console=tty0 console=ttyS0".into(),
            },
        ),
        (
            vec![
                ("kernel_id", kernel.as_str()),
                ("ramdisk_id", ramdisk.as_str()),
                ("os_command_line", "quiet"),
            ],
            Boot::Kernel {
                kernel: old,
                ramdisk: Some(new),
                command_line: "quiet".into(),
            },
        ),
    ] {
        assert_eq!(
            world.boot_of(&properties).await.unwrap(),
            expected,
            "{properties:?}"
        );
    }
    let absent = Uuid::from_u128(77).to_string();
    let long = "x".repeat(2048);
    for properties in [
        vec![("hw_firmware_type", "coreboot")],
        vec![("kernel_id", "linux")],
        vec![("kernel_id", absent.as_str())],
        vec![("kernel_id", kernel.as_str()), ("ramdisk_id", absent.as_str())],
        vec![("kernel_id", kernel.as_str()), ("os_command_line", long.as_str())],
        vec![("kernel_id", kernel.as_str()), ("os_command_line", "a\0b")],
    ] {
        let refused = world.boot_of(&properties).await;
        assert!(
            matches!(refused, Err(Error::BadRequest(_))),
            "{properties:?}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_rebuild_and_a_rescue_bring_their_images_way_to_start() {
    let mut world = World::furnished().await;
    world.start();
    let id = world.active().await;
    assert_eq!(world.started_with(id), Boot::Bios);
    world
        .properties(
            NEW,
            r#"{"kernel_id": "00000000-0000-0000-0000-000000000007", "os_command_line": "new"}"#,
        )
        .await;
    let new = Boot::Kernel {
        kernel: Uuid::from_u128(OLD),
        ramdisk: None,
        command_line: "new".into(),
    };

    // Rescued with the other image: its kernel, and afterwards the server's own way again.
    let rescue = Action::Rescue {
        image: Some(Uuid::from_u128(NEW)),
    };
    world.act(id, rescue).await;
    world.rests(id, VmState::Rescued).await;
    assert_eq!(world.started_with(id), new);
    world.act(id, Action::Unrescue).await;
    world.rests(id, VmState::Active).await;
    assert_eq!(world.started_with(id), Boot::Bios);

    let rebuild = Action::Rebuild(Box::new(Rebuild {
        image: Uuid::from_u128(NEW),
        ..Rebuild::default()
    }));
    world.act(id, rebuild).await;
    world.rests(id, VmState::Active).await;
    assert_eq!(world.started_with(id), new);
    assert_eq!(world.get(id).await.boot, new, "it is written down");

    // What the image says later changes nothing, and the kernel must stay while the server is there.
    world.properties(NEW, "{}").await;
    world.act(id, Action::Reboot { hard: true }).await;
    world.rests(id, VmState::Active).await;
    assert_eq!(world.started_with(id), new);
    let kernel = Uuid::from_u128(OLD);
    let delete = || crate::image::update::delete(&world.test.cloud, &world.admin, kernel);
    assert!(matches!(delete().await, Err(Error::Conflict(_))));
    world.act(id, Action::Delete).await;
    world.until(id, |server| server.deleted).await;
    delete().await.unwrap();
}

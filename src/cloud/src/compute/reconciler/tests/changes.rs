//! Resize, rebuild, rescue, shelving, and images of servers.

use model::disk::VolumeSource;

use super::*;
use crate::compute::change::{NewImage, Rebuild, Unshelve};
use crate::compute::state::Phase;
use crate::compute::{migrations, scheduler};
use crate::context::Scope;

/// The image that a sample is made of, and another one.
const IMAGES: [u128; 2] = [7, 8];

impl World {
    /// With images, and a flavor that is larger than the samples'.
    pub(super) async fn furnished() -> World {
        let mut world = World::new().await;
        world.admin.scope = Scope::Project {
            id: "p".into(),
            domain_id: "default".into(),
        };
        world
            .test
            .cloud
            .store
            .write("test", |conn| {
                for id in IMAGES {
                    conn.execute(
                        "INSERT INTO images (id, owner, name, status, visibility, disk_format, container_format, size, \
                         virtual_size, original, min_disk, min_ram, protected, hidden, tags, properties, created_at, \
                         updated_at) VALUES (?1, 'p', 'i', 'active', 'private', 'raw', 'bare', 1024, 1024, 0, 0, 0, 0, \
                         0, '', '{}', 0, 0)",
                        [Uuid::from_u128(id).to_string()],
                    )?;
                }
                conn.execute(
                    "INSERT INTO compute_flavors (id, name, vcpus, ram_mib, disk_gib) VALUES ('g', 'g', 2, 2048, 2)",
                    [],
                )?;
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
        world
    }

    /// Virtual processors that are claimed on the node.
    async fn claimed(&self) -> u64 {
        let claims = self
            .test
            .cloud
            .store
            .read(|conn| scheduler::claims(conn, "node1"))
            .await
            .unwrap();
        claims.vcpus
    }

    async fn image_status(&self, id: Uuid) -> Option<String> {
        self.test
            .cloud
            .store
            .read(move |conn| {
                let mut query = conn.prepare("SELECT status FROM images WHERE id = ?1")?;
                let mut rows = query.query([id.to_string()])?;
                Ok::<_, Error>(match rows.next()? {
                    Some(row) => Some(row.get(0)?),
                    None => None,
                })
            })
            .await
            .unwrap()
    }
}

fn resize() -> Action {
    Action::Resize {
        flavor: "g".into(),
        disk_config: None,
    }
}

fn rebuild() -> Action {
    Action::Rebuild(Box::new(Rebuild {
        image: Uuid::from_u128(IMAGES[1]),
        ..Rebuild::default()
    }))
}

fn unshelve() -> Action {
    Action::Unshelve(Unshelve::default())
}

fn image(id: Uuid) -> Action {
    Action::CreateImage(Box::new(NewImage {
        id,
        name: "copy".into(),
        ..NewImage::default()
    }))
}

/// What leads to a state, the action under test, and where that leads.
fn cases() -> Vec<(Vec<(Action, VmState)>, Action, VmState)> {
    use VmState::*;
    let stop = || (Action::Stop, Stopped);
    let rescue = || Action::Rescue { image: None };
    vec![
        (vec![], resize(), Resized),
        (vec![stop()], resize(), Resized),
        (vec![(resize(), Resized)], Action::ConfirmResize, Active),
        (vec![(resize(), Resized)], Action::RevertResize, Active),
        (vec![stop(), (resize(), Resized)], Action::ConfirmResize, Stopped),
        (vec![stop(), (resize(), Resized)], Action::RevertResize, Stopped),
        (vec![], rebuild(), Active),
        (vec![stop()], rebuild(), Stopped),
        (vec![], image(Uuid::from_u128(99)), Active),
        (vec![], rescue(), Rescued),
        (vec![(rescue(), Rescued)], Action::Unrescue, Active),
        (vec![], Action::Shelve, ShelvedOffloaded),
        (vec![(Action::Shelve, ShelvedOffloaded)], unshelve(), Active),
        (vec![(resize(), Resized)], Action::Delete, Deleted),
        (vec![(rescue(), Rescued)], Action::Delete, Deleted),
        (vec![(Action::Shelve, ShelvedOffloaded)], Action::Delete, Deleted),
    ]
}

/// A server whose reconciler has been killed before it saw the action.
async fn prepared(before: &[(Action, VmState)], action: &Action) -> (World, Uuid) {
    let mut world = World::furnished().await;
    world.start();
    let id = world.active().await;
    for (action, vm) in before {
        world.act(id, action.clone()).await;
        world.rests(id, *vm).await;
    }
    world.kill().await;
    world.act(id, action.clone()).await;
    (world, id)
}

/// The server is as it should be in this state, on the node and in the rows.
async fn check(world: &World, id: Uuid, vm: VmState, about: &str) {
    let server = world.get(id).await;
    assert!(server.fault.is_none(), "{about}");
    let on = server.power_state == Power::Running;
    assert_eq!(world.machine(id).is_some(), on, "{about}");
    let gone = matches!(vm, VmState::Deleted | VmState::ShelvedOffloaded);
    let volumes = usize::from(!gone)
        + usize::from(server.exchange.as_ref().is_some_and(|e| e.root.is_some()))
        + usize::from(server.rescue.is_some());
    assert_eq!(world.test.drivers.state().volumes.len(), volumes, "{about}");
    let claimed = if gone { 0 } else { u64::from(server.most().0) };
    assert_eq!(world.claimed().await, claimed, "{about}");
    if let Some((machine, _)) = world.test.drivers.state().machines.get(&id) {
        assert_eq!(machine.vcpus, server.flavor.vcpus, "{about}");
        let first = server.rescue.as_ref().map_or(server.root_volume, |r| r.volume);
        assert_eq!(machine.disks[0].volume, first, "{about}");
    }
}

#[tokio::test]
async fn every_step_of_a_change_may_be_repeated_and_the_daemon_may_die_after_each() {
    repeat_every_step(0).await;
}

#[tokio::test]
async fn every_step_of_other_changes_may_be_repeated_too() {
    repeat_every_step(1).await;
}

/// Every second case from this one on.
async fn repeat_every_step(first: usize) {
    for (before, action, vm) in cases().into_iter().skip(first).step_by(2) {
        let ended =
            |s: &Server| s.vm_state == vm && s.task_state.is_none() && s.generation == s.observed_generation;
        for survive in 0..9 {
            let about = format!("{action:?} after {survive}");
            let (mut world, id) = prepared(&before, &action).await;
            let shared = world.shared();
            let slot = Slot::default();
            let mut done = 0;
            'steps: while done < survive {
                let server = world.get(id).await;
                if ended(&server) {
                    break;
                }
                for step in plan(server.state(), world.machine(id), Duration::ZERO) {
                    if done == survive {
                        break 'steps;
                    }
                    done += 1;
                    for _ in 0..2 {
                        let performed = steps::perform(&shared, &server, step, &slot).await;
                        assert!(performed.is_ok(), "{step:?} of {about}");
                    }
                    if ends_a_plan(step) {
                        break;
                    }
                }
            }
            world.start();
            world.until(id, ended).await;
            world.kill().await;
            check(&world, id, vm, &about).await;
            if matches!(action, Action::CreateImage(_)) {
                assert_eq!(
                    world.image_status(Uuid::from_u128(99)).await.as_deref(),
                    Some("active"),
                    "{about}"
                );
            }
            if done < survive {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_resize_is_kept_or_taken_back() {
    let mut world = World::furnished().await;
    world.start();
    for (word, flavor, bytes, told) in [
        (Action::ConfirmResize, "g", 2_u64 << 30, "confirmed"),
        (Action::RevertResize, "f", 1 << 30, "reverted"),
    ] {
        let id = world.active().await;
        world.act(id, resize()).await;
        let server = world.rests(id, VmState::Resized).await;
        assert_eq!(
            (server.status(), server.flavor.id.as_str(), server.root_bytes),
            ("VERIFY_RESIZE", "g", 2 << 30)
        );
        assert_eq!(server.exchange.as_ref().map(|e| e.phase), Some(Phase::Swapped));
        // A guest that shuts down waits for the word as before, and so does one on a node that was restarted.
        world.test.drivers.happen(id, PowerState::Shutdown);
        world.until(id, |s| s.power_state == Power::Shutdown).await;
        world.act(id, word).await;
        let server = world
            .until(id, |s| s.exchange.is_none() && s.task_state.is_none())
            .await;
        assert_eq!((server.flavor.id.as_str(), server.root_bytes), (flavor, bytes));
        let history = migrations::list(
            &world.test.cloud,
            &world.admin,
            migrations::Filter {
                server: Some(id),
                ..Default::default()
            },
        );
        assert_eq!(history.await.unwrap()[0].status, told);
        world.act(id, Action::Delete).await;
        world.until(id, |s| s.deleted).await;
        assert_eq!(world.claimed().await, 0);
    }
}

#[tokio::test]
async fn a_resize_without_a_word_is_confirmed_if_operators_want_it_so() {
    let mut world = World::furnished().await;
    let settings = Settings {
        confirm_resize_after: Some(Duration::from_millis(1)),
        ..settings()
    };
    world.worker = Some(spawn_with(world.test.cloud.clone(), settings));
    let id = world.active().await;
    world.act(id, resize()).await;
    let server = world
        .until(id, |s| {
            s.flavor.id == "g" && s.vm_state == VmState::Active && s.task_state.is_none()
        })
        .await;
    assert!(server.exchange.is_none());
}

#[tokio::test]
async fn a_resize_that_fails_costs_the_tenant_nothing() {
    let mut world = World::furnished().await;
    world.start();
    let id = world.active().await;
    let before = world.get(id).await;
    world
        .test
        .drivers
        .fail_next("create_volume", DriverError::Failed("no".into()));
    world.act(id, resize()).await;
    world.rests(id, VmState::Error).await;
    world.act(id, Action::Reboot { hard: true }).await;
    let after = world.rests(id, VmState::Active).await;
    assert_eq!(
        (
            after.root_volume,
            after.flavor.id.as_str(),
            after.exchange.is_none()
        ),
        (before.root_volume, "f", true)
    );
    world.kill().await;
    check(&world, id, VmState::Active, "after a failed resize").await;
}

#[tokio::test]
async fn a_rebuild_after_a_failed_change_leaves_no_root_disk_behind() {
    for change in [resize(), rebuild()] {
        let mut world = World::furnished().await;
        world.start();
        let id = world.active().await;
        let no = DriverError::Failed("no".into());
        world.test.drivers.fail_next("start", no);
        world.act(id, change).await;
        world.rests(id, VmState::Error).await;
        world.act(id, rebuild()).await;
        world.rests(id, VmState::Active).await;
        world.kill().await;
        check(&world, id, VmState::Active, "after a failed change").await;
    }
}

#[tokio::test]
async fn from_a_rescue_that_fails_a_server_comes_back_to_its_own_disk() {
    let again = Action::Rescue {
        image: Some(Uuid::from_u128(IMAGES[1])),
    };
    for call in ["create_volume", "start"] {
        for (way, vm) in [
            (Action::Reboot { hard: true }, VmState::Active),
            (rebuild(), VmState::Active),
            (again.clone(), VmState::Rescued),
        ] {
            let about = format!("{way:?} after {call}");
            let mut world = World::furnished().await;
            world.start();
            let id = world.active().await;
            let no = DriverError::Failed("no".into());
            world.test.drivers.fail_next(call, no);
            world.act(id, Action::Rescue { image: None }).await;
            world.rests(id, VmState::Error).await;
            world.act(id, way).await;
            let server = world.rests(id, vm).await;
            world.kill().await;
            check(&world, id, vm, &about).await;
            if let Some(rescue) = server.rescue {
                let made_of = world.test.drivers.state().volumes[&rescue.volume].1;
                assert_eq!(
                    made_of,
                    VolumeSource::Image(Uuid::from_u128(IMAGES[1])),
                    "{about}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_server_whose_unrescue_fails_has_its_own_disk_again() {
    let mut world = World::furnished().await;
    world.start();
    let id = world.active().await;
    world.act(id, Action::Rescue { image: None }).await;
    world.rests(id, VmState::Rescued).await;
    let no = DriverError::Failed("no".into());
    world.test.drivers.fail_next("start", no);
    world.act(id, Action::Unrescue).await;
    world.rests(id, VmState::Error).await;
    world.act(id, Action::Reboot { hard: true }).await;
    world.rests(id, VmState::Active).await;
    world.kill().await;
    check(&world, id, VmState::Active, "after a failed unrescue").await;
}

#[tokio::test]
async fn a_server_whose_image_is_deleted_while_it_is_shelved_keeps_its_disk() {
    let (mut world, id) = prepared(&[], &Action::Shelve).await;
    let before = world.get(id).await;
    crate::image::update::delete(&world.test.cloud, &world.admin, before.shelved_image.unwrap())
        .await
        .unwrap();
    world.start();
    let server = world.rests(id, VmState::Stopped).await;
    assert_eq!(
        (server.root_volume, server.host.as_deref(), server.shelved_image),
        (before.root_volume, Some("node1"), None)
    );
    world.act(id, Action::Start).await;
    world.rests(id, VmState::Active).await;
    world.kill().await;
    check(&world, id, VmState::Active, "after a shelving without an image").await;
}

#[tokio::test]
async fn a_shelving_that_fails_leaves_no_image_behind() {
    let mut world = World::furnished().await;
    world.start();
    let id = world.active().await;
    let no = || DriverError::Failed("no".into());
    world.test.drivers.fail_next("image_from_volume", no());
    world.act(id, Action::Shelve).await;
    let first = world.get(id).await.shelved_image.unwrap();
    let server = world.rests(id, VmState::Error).await;
    assert_eq!(server.shelved_image, None);
    let status = world.image_status(first).await;
    assert_eq!(status.as_deref(), Some("pending_delete"));
    world.act(id, Action::Reboot { hard: true }).await;
    world.rests(id, VmState::Active).await;
    // Once there is an image, what hinders the rest is tried again: the disk may be gone by then.
    world.test.drivers.fail_next("forget", no());
    world.test.drivers.fail_next("delete_volume", no());
    world.act(id, Action::Shelve).await;
    world.rests(id, VmState::ShelvedOffloaded).await;
    world.act(id, unshelve()).await;
    world.rests(id, VmState::Active).await;
    world.kill().await;
    check(&world, id, VmState::Active, "after a failed shelving").await;
}

#[tokio::test]
async fn an_unshelving_that_fails_puts_the_server_back_on_its_shelf() {
    for call in ["create_volume", "start"] {
        let mut world = World::furnished().await;
        world.start();
        let id = world.active().await;
        world.act(id, Action::Shelve).await;
        let image = world.rests(id, VmState::ShelvedOffloaded).await.shelved_image;
        let no = DriverError::Failed("no".into());
        world.test.drivers.fail_next(call, no);
        world.act(id, unshelve()).await;
        let server = world.until(id, |s| s.task_state.is_none()).await;
        assert_eq!(
            (server.vm_state, server.host.as_deref(), server.shelved_image),
            (VmState::ShelvedOffloaded, None, image),
            "{call}"
        );
        check(&world, id, VmState::ShelvedOffloaded, call).await;
        world.act(id, unshelve()).await;
        world.rests(id, VmState::Active).await;
        world.kill().await;
        check(&world, id, VmState::Active, call).await;
    }
}

#[tokio::test]
async fn the_owner_of_an_image_does_not_choose_the_size_of_a_rescue_disk() {
    let mut world = World::furnished().await;
    world.start();
    let id = world.active().await;
    let set = async |column: &'static str, value: i64| {
        world
            .test
            .cloud
            .store
            .write("test", move |conn| {
                let sql = format!("UPDATE images SET {column} = ?1");
                conn.execute(&sql, [value])?;
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    };
    set("virtual_size", 101 << 30).await;
    let rescue = Action::Rescue { image: None };
    let refused = act(&world.test.cloud, &world.admin, &id.to_string(), rescue.clone()).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    set("virtual_size", (2 << 30) + 1).await;
    set("min_disk", i64::from(i32::MAX)).await;
    world.act(id, rescue).await;
    let server = world.rests(id, VmState::Rescued).await;
    assert_eq!(server.rescue.unwrap().bytes, 3 << 30);
}

#[tokio::test]
async fn an_image_that_fails_harms_no_server_and_leaves_no_row() {
    let mut world = World::furnished().await;
    world.start();
    crate::image::spawn(world.test.cloud.clone());
    let (id, copy) = (world.active().await, Uuid::new_v4());
    world
        .test
        .drivers
        .fail_next("image_from_volume", DriverError::Failed("no".into()));
    let mut events = world.test.cloud.store.subscribe();
    world.act(id, image(copy)).await;
    let server = world.rests(id, VmState::Active).await;
    assert!(server.fault.is_none() && server.snapshot.is_none());
    assert_eq!(world.machine(id), Some(PowerState::Running));
    while world.image_status(copy).await.is_some() {
        events.recv().await.unwrap();
    }
}

#[tokio::test]
async fn an_image_that_its_owner_deletes_meanwhile_does_not_come_back() {
    let mut world = World::furnished().await;
    world.start();
    let (id, copy) = (world.active().await, Uuid::new_v4());
    world.kill().await;
    world.act(id, image(copy)).await;
    crate::image::update::delete(&world.test.cloud, &world.admin, copy)
        .await
        .unwrap();
    world.start();
    world.rests(id, VmState::Active).await;
    assert_eq!(world.image_status(copy).await, None);
    assert!(!world.test.drivers.state().images.contains(&copy));
}

#[tokio::test]
async fn a_change_without_room_or_sense_is_refused_and_changes_nothing() {
    let mut world = World::furnished().await;
    world.start();
    let id = world.active().await;
    world
        .test
        .cloud
        .store
        .write("test", |conn| {
            for (id, vcpus, ram, disk) in [("small", 1, 512, 0), ("cores", 17, 1024, 1), ("ram", 1, 100_000, 1)] {
                conn.execute(
                    "INSERT INTO compute_flavors (id, name, vcpus, ram_mib, disk_gib) VALUES (?1, ?1, ?2, ?3, ?4)",
                    rusqlite::params![id, vcpus, ram, disk],
                )?;
            }
            conn.execute(
                "INSERT INTO compute_quotas VALUES ('p', 'ram', 1000000), ('p', 'cores', 2)",
                [],
            )?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    let before = world.get(id).await;
    for (flavor, word) in [
        ("f", "must change flavor"),
        ("nothing", "Unable to locate"),
        ("small", "zero disk"),
        ("cores", "Quota exceeded for cores"),
        ("ram", "No valid host"),
    ] {
        // The sample's own flavor has no row: it is known by its copy.
        let action = Action::Resize {
            flavor: flavor.into(),
            disk_config: None,
        };
        let error = act(&world.test.cloud, &world.admin, &id.to_string(), action)
            .await
            .unwrap_err();
        let known = flavor == "f" && error.to_string().contains("Unable to locate");
        assert!(error.to_string().contains(word) || known, "{flavor}: {error}");
        assert_eq!(world.get(id).await, before, "{flavor}");
        assert_eq!(world.claimed().await, 1, "{flavor}");
    }
}

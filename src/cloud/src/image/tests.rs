use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;

use super::list::Filter;
use super::members::Consent;
use super::update::Step;
use super::*;
use crate::driver::DriverError;
use crate::testing::{TestCloud, cloud};

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

async fn make(cloud: &Cloud, ctx: &Context, document: Value) -> Result<Image> {
    update::create(cloud, ctx, object(document)).await
}

async fn send(cloud: &Arc<Cloud>, ctx: &Context, id: Uuid, bytes: &[u8]) -> Result<()> {
    let chunks: Vec<std::result::Result<Bytes, String>> = bytes
        .chunks(1000)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    data::upload(cloud, ctx, id, None, futures::stream::iter(chunks)).await
}

async fn receive(cloud: &Cloud, ctx: &Context, id: Uuid) -> Vec<u8> {
    let mut download = data::download(cloud, ctx, id).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    (&mut download.file)
        .take(download.size)
        .read_to_end(&mut bytes)
        .await
        .unwrap();
    bytes
}

async fn queued(test: &TestCloud, ctx: &Context, format: &str) -> Uuid {
    let document = json!({"name": "i", "disk_format": format, "container_format": "bare"});
    make(&test.cloud, ctx, document).await.unwrap().id
}

async fn active(test: &TestCloud, ctx: &Context, document: Value) -> Uuid {
    let mut document = object(document);
    document.insert("disk_format".into(), "raw".into());
    document.insert("container_format".into(), "bare".into());
    let id = update::create(&test.cloud, ctx, document).await.unwrap().id;
    send(&test.cloud, ctx, id, b"bytes").await.unwrap();
    id
}

/// All rows, whatever their state.
async fn count(cloud: &Cloud) -> i64 {
    let count = cloud
        .store
        .read(|conn| Ok::<i64, Error>(conn.query_row("SELECT count(*) FROM images", [], |row| row.get(0))?));
    count.await.unwrap()
}

fn is_forbidden<T>(result: Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == Some(crate::error::Kind::Forbidden))
}

fn is_not_found<T>(result: Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == Some(crate::error::Kind::NotFound))
}

#[tokio::test]
async fn a_download_gives_what_was_uploaded_in_every_format() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let bytes: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
    for format in ["raw", "iso", "qcow2", "vmdk", "vhd", "vhdx"] {
        let id = queued(&test, &ctx, format).await;
        assert!(
            data::download(&test.cloud, &ctx, id).await.unwrap().is_none(),
            "it has none yet"
        );
        send(&test.cloud, &ctx, id, &bytes).await.unwrap();
        let image = show(&test.cloud, &ctx, id).await.unwrap();
        assert_eq!((image.status, image.size), (Status::Active, Some(10_000)));
        assert_eq!(image.disk_format.map(format_name), Some(format));
        assert_eq!(receive(&test.cloud, &ctx, id).await, bytes, "{format}");
        assert_eq!(
            get_for_boot(&test.cloud, &ctx, id).await.unwrap().virtual_size,
            Some(10_000)
        );
    }
}

#[tokio::test]
async fn checksums_are_those_of_the_bytes() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx, "raw").await;
    send(&test.cloud, &ctx, id, b"abc").await.unwrap();
    let image = show(&test.cloud, &ctx, id).await.unwrap();
    // RFC 1321 A.5 and FIPS 180-4's example.
    assert_eq!(
        image.checksum.as_deref(),
        Some("900150983cd24fb0d6963f7d28e17f72")
    );
    assert!(
        image
            .os_hash_value
            .unwrap()
            .starts_with("ddaf35a193617abacc417349ae204131")
    );
}

#[tokio::test]
async fn an_empty_upload_uploads_nothing() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx, "raw").await;
    send(&test.cloud, &ctx, id, b"").await.unwrap();
    assert_eq!(show(&test.cloud, &ctx, id).await.unwrap().status, Status::Queued);
    send(&test.cloud, &ctx, id, b"bytes").await.unwrap();
    assert_eq!(show(&test.cloud, &ctx, id).await.unwrap().status, Status::Active);
}

#[tokio::test]
async fn what_was_staged_is_imported_when_the_client_says_so() {
    let test = cloud().await;
    let (c, ctx) = (&test.cloud, test.context("ann", "one", "member").await);
    let id = queued(&test, &ctx, "raw").await;
    let stage = |bytes: &'static [u8]| {
        let chunks = futures::stream::iter([Ok::<_, String>(Bytes::from_static(bytes))]);
        staging::stage(c, &ctx, id, None, chunks)
    };
    let begin = || import::import(c, &ctx, id, import::Method::Staged, json!({}));
    assert!(begin().await.is_err(), "nothing is staged");
    assert!(stage(b"").await.is_err());
    stage(b"staged bytes").await.unwrap();
    let image = show(c, &ctx, id).await.unwrap();
    assert_eq!((image.status, image.size), (Status::Uploading, Some(12)));
    // A restart keeps what was staged as a whole.
    data::recover(c).await.unwrap();
    let mut events = c.store.subscribe();
    begin().await.unwrap();
    while show(c, &ctx, id).await.unwrap().status != Status::Active {
        events.recv().await.unwrap();
    }
    assert_eq!(receive(c, &ctx, id).await, b"staged bytes");
}

#[tokio::test]
async fn a_failed_upload_leaves_the_image_queued_and_no_file() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx, "qcow2").await;

    test.drivers.fail_next(
        "import_image",
        DriverError::BadInput("it names a backing file".into()),
    );
    let error = send(&test.cloud, &ctx, id, b"hostile").await.unwrap_err();
    assert!(
        matches!(&error, Error::BadRequest(text) if text.contains("backing file")),
        "{error:?}"
    );

    let broken: Vec<std::result::Result<Bytes, String>> =
        vec![Ok(Bytes::from_static(b"x")), Err("reset".into())];
    let error = data::upload(&test.cloud, &ctx, id, None, futures::stream::iter(broken))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::BadRequest(_)));
    let huge = data::upload(
        &test.cloud,
        &ctx,
        id,
        Some(u64::MAX),
        futures::stream::iter([Ok::<_, String>(Bytes::new())]),
    );
    assert!(matches!(huge.await, Err(Error::TooLarge(_))));

    let image = show(&test.cloud, &ctx, id).await.unwrap();
    assert_eq!((image.status, image.size), (Status::Queued, None));
    let staging = &test.cloud.config.staging_dir;
    assert_eq!(
        std::fs::read_dir(staging)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().is_file())
            .count(),
        0
    );
    assert_eq!(std::fs::read_dir(staging.join("originals")).unwrap().count(), 0);
    assert!(test.drivers.state().images.is_empty());

    send(&test.cloud, &ctx, id, b"good").await.unwrap();
    assert!(matches!(
        send(&test.cloud, &ctx, id, b"again").await,
        Err(Error::Conflict(_))
    ));
}

#[tokio::test]
async fn an_upload_larger_than_allowed_is_cut_off() {
    let mut test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx, "raw").await;
    // Nobody else holds the cloud yet.
    match Arc::get_mut(&mut test.cloud) {
        Some(cloud) => cloud.config.max_image_bytes = 1500,
        None => panic!("the cloud is shared"),
    }
    assert!(matches!(
        send(&test.cloud, &ctx, id, &[0; 1501]).await,
        Err(Error::TooLarge(_))
    ));
    send(&test.cloud, &ctx, id, &[0; 1500]).await.unwrap();
}

#[tokio::test]
async fn an_abandoned_upload_is_put_back() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx, "raw").await;
    let mut events = test.cloud.store.subscribe();
    let stuck = futures::stream::pending::<std::result::Result<Bytes, String>>();
    let upload = tokio::spawn({
        let (cloud, ctx) = (test.cloud.clone(), ctx.clone());
        async move { data::upload(&cloud, &ctx, id, None, stuck).await }
    });
    while show(&test.cloud, &ctx, id).await.unwrap().status != Status::Saving {
        events.recv().await.unwrap();
    }
    upload.abort();
    while show(&test.cloud, &ctx, id).await.unwrap().status != Status::Queued {
        events.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_restart_ends_what_was_under_way() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let (a, b, c) = (
        queued(&test, &ctx, "raw").await,
        queued(&test, &ctx, "raw").await,
        queued(&test, &ctx, "raw").await,
    );
    let write = test.cloud.store.write("test", move |conn| {
        let set = "UPDATE images SET status = ?2 WHERE id = ?1";
        for (id, status) in [(a, "saving"), (b, "importing"), (c, "pending_delete")] {
            conn.execute(set, [&id.to_string(), status])?;
        }
        Ok::<_, Error>(())
    });
    write.await.unwrap();
    std::fs::create_dir_all(&test.cloud.config.staging_dir).unwrap();
    std::fs::write(test.cloud.config.staging_dir.join(format!("{a}.upload")), b"half").unwrap();
    recover(&test.cloud).await.unwrap();
    let mut events = test.cloud.store.subscribe();
    let task = spawn(test.cloud.clone());
    while count(&test.cloud).await > 2 {
        events.recv().await.unwrap();
    }
    task.abort();
    for id in [a, b] {
        assert_eq!(show(&test.cloud, &ctx, id).await.unwrap().status, Status::Queued);
    }
    assert_eq!(count(&test.cloud).await, 2);
    assert_eq!(
        std::fs::read_dir(&test.cloud.config.staging_dir).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn who_sees_and_changes_what() {
    let test = cloud().await;
    let (ann, bob) = (
        test.context("ann", "one", "member").await,
        test.context("bob", "two", "member").await,
    );
    let reader = test.context("rob", "one", "reader").await;
    let admin = test.context("admin", "admin", "admin").await;
    let c = &test.cloud;

    assert!(is_forbidden(make(c, &reader, json!({"name": "x"})).await));
    assert!(is_forbidden(
        make(c, &ann, json!({"name": "x", "visibility": "public"})).await
    ));

    let private = active(&test, &ann, json!({"name": "p", "visibility": "private"})).await;
    let shared = active(&test, &ann, json!({"name": "s"})).await;
    let community = active(&test, &ann, json!({"name": "c", "visibility": "community"})).await;
    let public = active(&test, &admin, json!({"name": "P", "visibility": "public"})).await;

    let names = |images: Vec<Image>| {
        images
            .into_iter()
            .filter_map(|image| image.name)
            .collect::<String>()
    };
    let list = async |ctx: &Context, filter: Filter| {
        let images = list::list(c, ctx, filter, vec![("name".into(), true)])
            .await
            .unwrap();
        names(images)
    };
    assert_eq!(list(&ann, Filter::default()).await, "Pcps");
    assert_eq!(list(&bob, Filter::default()).await, "P");
    let community_only = || Filter {
        visibility: Some(Visibility::Community),
        ..Filter::default()
    };
    assert_eq!(list(&bob, community_only()).await, "c");
    assert_eq!(list(&admin, Filter::default()).await, "Pps");

    assert!(is_not_found(show(c, &bob, private).await));
    assert!(is_not_found(show(c, &bob, shared).await));
    show(c, &bob, community).await.unwrap();
    assert!(get_for_boot(c, &bob, private).await.is_err());
    get_for_boot(c, &bob, public).await.unwrap();
    assert!(is_forbidden(update::delete(c, &bob, public).await));
    assert!(is_not_found(update::delete(c, &bob, private).await));
    assert!(is_forbidden(
        update::update(c, &bob, community, vec![Step::Remove("x".into())]).await
    ));

    // Shared: seen once a member, listed once accepted.
    let two = bob.project().unwrap().to_owned();
    assert!(is_forbidden(members::add(c, &ann, private, &two).await));
    members::add(c, &ann, shared, &two).await.unwrap();
    assert!(matches!(
        members::add(c, &ann, shared, &two).await,
        Err(Error::Conflict(_))
    ));
    show(c, &bob, shared).await.unwrap();
    assert_eq!(list(&bob, Filter::default()).await, "P");
    assert!(is_forbidden(
        members::answer(c, &ann, shared, &two, Consent::Accepted).await
    ));
    members::answer(c, &bob, shared, &two, Consent::Accepted)
        .await
        .unwrap();
    assert_eq!(list(&bob, Filter::default()).await, "Ps");
    members::remove(c, &ann, shared, &two).await.unwrap();
    assert!(is_not_found(show(c, &bob, shared).await));
}

#[tokio::test]
async fn attributes_have_types_and_limits() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let c = &test.cloud;
    for bad in [
        json!({"name": 1}),
        json!({"name": "x".repeat(256)}),
        json!({"visibility": "secret"}),
        json!({"disk_format": "vdi"}),
        json!({"disk_format": "ploop"}),
        json!({"disk_format": "VMDK"}),
        json!({"container_format": "docker"}),
        json!({"min_disk": -1}),
        json!({"min_ram": "much"}),
        json!({"protected": "yes"}),
        json!({"tags": "x"}),
        json!({"tags": [1]}),
        json!({"tags": ["x".repeat(256)]}),
        json!({"id": "x"}),
        json!({"key": 1}),
        json!({"key": {"deep": []}}),
    ] {
        let result = make(c, &ctx, bad.clone()).await;
        assert!(matches!(result, Err(Error::BadRequest(_))), "{bad}: {result:?}");
    }
    for forbidden in [
        json!({"status": "active"}),
        json!({"size": 1}),
        json!({"owner": "x"}),
        json!({"locations": []}),
    ] {
        assert!(
            is_forbidden(make(c, &ctx, forbidden.clone()).await),
            "{forbidden}"
        );
    }
    let id = Uuid::new_v4();
    let document = json!({"id": id, "name": "n", "os_distro": "debian", "tags": ["b", "a"], "min_disk": 2});
    let image = make(c, &ctx, document.clone()).await.unwrap();
    assert_eq!(
        (image.id, image.visibility, image.min_disk),
        (id, Visibility::Shared, 2)
    );
    assert_eq!(
        image.properties.get("os_distro").map(String::as_str),
        Some("debian")
    );
    assert!(matches!(make(c, &ctx, document).await, Err(Error::Conflict(_))));

    let steps = |steps: Vec<Step>| update::update(c, &ctx, id, steps);
    let image = steps(vec![
        Step::Replace("name".into(), json!("m")),
        Step::Add("x".into(), json!("1")),
        Step::Remove("os_distro".into()),
    ])
    .await
    .unwrap();
    assert_eq!((image.name.as_deref(), image.properties.len()), (Some("m"), 1));
    assert!(matches!(
        steps(vec![Step::Replace("none".into(), json!("1"))]).await,
        Err(Error::Conflict(_))
    ));
    assert!(matches!(
        steps(vec![Step::Remove("none".into())]).await,
        Err(Error::Conflict(_))
    ));
    assert!(is_forbidden(steps(vec![Step::Remove("name".into())]).await));
    assert!(is_forbidden(
        steps(vec![Step::Replace("checksum".into(), json!("x"))]).await
    ));
    // All steps or none.
    let half = vec![
        Step::Replace("name".into(), json!("half")),
        Step::Remove("none".into()),
    ];
    assert!(steps(half).await.is_err());
    assert_eq!(show(c, &ctx, id).await.unwrap().name.as_deref(), Some("m"));
}

#[tokio::test]
async fn protected_and_deactivated_images() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let admin = test.context("admin", "admin", "admin").await;
    let c = &test.cloud;
    let id = active(&test, &ctx, json!({"name": "x", "protected": true})).await;
    assert!(is_forbidden(update::delete(c, &ctx, id).await));
    let stranger = test.context("bob", "two", "member").await;
    assert!(is_not_found(update::set_active(c, &stranger, id, false).await));
    update::set_active(c, &ctx, id, false).await.unwrap();
    assert!(is_forbidden(data::download(c, &ctx, id).await));
    data::download(c, &admin, id).await.unwrap();
    assert!(get_for_boot(c, &ctx, id).await.is_err());
    update::set_active(c, &ctx, id, true).await.unwrap();
    update::update(c, &ctx, id, vec![Step::Replace("protected".into(), json!(false))])
        .await
        .unwrap();
    update::delete(c, &ctx, id).await.unwrap();
    assert!(is_not_found(show(c, &ctx, id).await));
    assert!(test.drivers.state().images.is_empty());
}

#[tokio::test]
async fn an_image_deleted_while_it_is_converted_goes_afterwards() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx, "raw").await;
    let (sender, receiver) = futures::channel::mpsc::unbounded::<std::result::Result<Bytes, String>>();
    let mut events = test.cloud.store.subscribe();
    let upload = tokio::spawn({
        let (cloud, ctx) = (test.cloud.clone(), ctx.clone());
        async move { data::upload(&cloud, &ctx, id, None, receiver).await }
    });
    while show(&test.cloud, &ctx, id).await.unwrap().status != Status::Saving {
        events.recv().await.unwrap();
    }
    update::delete(&test.cloud, &ctx, id).await.unwrap();
    sender.unbounded_send(Ok(Bytes::from_static(b"late"))).unwrap();
    drop(sender);
    assert!(is_not_found(upload.await.unwrap()));
    assert_eq!(count(&test.cloud).await, 0);
    assert!(test.drivers.state().images.is_empty());
}

#[tokio::test]
async fn a_deletion_that_fails_on_the_node_is_done_and_tried_again() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = active(&test, &ctx, json!({"name": "x"})).await;
    test.drivers
        .fail_next("delete_image", DriverError::Failed("the pool is away".into()));
    update::delete(&test.cloud, &ctx, id).await.unwrap();
    assert!(is_not_found(show(&test.cloud, &ctx, id).await));
    assert_eq!(count(&test.cloud).await, 1);
    let mut events = test.cloud.store.subscribe();
    let task = spawn(test.cloud.clone());
    while count(&test.cloud).await > 0 {
        events.recv().await.unwrap();
    }
    task.abort();
    assert!(test.drivers.state().images.is_empty());
}

#[tokio::test]
async fn a_projects_images_have_a_limit_together() {
    let mut test = cloud().await;
    match Arc::get_mut(&mut test.cloud) {
        Some(cloud) => cloud.config.max_project_image_bytes = 1500,
        None => panic!("the cloud is shared already"),
    }
    let ann = test.context("ann", "shop", "member").await;
    let id = queued(&test, &ann, "raw").await;
    send(&test.cloud, &ann, id, &[1; 1000]).await.unwrap();
    // Announced or not, staged or not.
    let over = queued(&test, &ann, "raw").await;
    for length in [Some(600), None] {
        let bytes = futures::stream::iter([Ok::<_, String>(Bytes::from(vec![2; 600]))]);
        let sent = data::upload(&test.cloud, &ann, over, length, bytes).await;
        assert!(matches!(sent, Err(Error::TooLarge(_))), "{sent:?}");
        let bytes = futures::stream::iter([Ok::<_, String>(Bytes::from(vec![2; 600]))]);
        let sent = staging::stage(&test.cloud, &ann, over, length, bytes).await;
        assert!(matches!(sent, Err(Error::TooLarge(_))), "{sent:?}");
    }
    assert_eq!(
        show(&test.cloud, &ann, over).await.unwrap().status,
        Status::Queued
    );
    send(&test.cloud, &ann, over, &[2; 500]).await.unwrap();
    // Another project has a limit of its own.
    let bob = test.context("bob", "other", "member").await;
    let theirs = queued(&test, &bob, "raw").await;
    send(&test.cloud, &bob, theirs, &[3; 1500]).await.unwrap();
}

#[tokio::test]
async fn staged_bytes_that_nobody_imports_go() {
    let test = cloud().await;
    let ann = test.context("ann", "shop", "member").await;
    let id = queued(&test, &ann, "raw").await;
    let bytes = futures::stream::iter([Ok::<_, String>(Bytes::from(vec![2; 600]))]);
    staging::stage(&test.cloud, &ann, id, None, bytes).await.unwrap();
    staging::expire(&test.cloud, 1).await;
    assert_eq!(
        show(&test.cloud, &ann, id).await.unwrap().status,
        Status::Uploading
    );
    staging::expire(&test.cloud, i64::MAX).await;
    assert_eq!(show(&test.cloud, &ann, id).await.unwrap().status, Status::Queued);
    assert!(!data::staged(&test.cloud, id).exists());
}

#[tokio::test]
async fn an_import_goes_on_without_its_client() {
    let test = cloud().await;
    let ann = test.context("ann", "shop", "member").await;
    let id = queued(&test, &ann, "raw").await;
    let bytes = futures::stream::iter([Ok::<_, String>(Bytes::from(vec![2; 600]))]);
    staging::stage(&test.cloud, &ann, id, None, bytes).await.unwrap();
    // Asked once, and dropped as by a client that goes away.
    let method = import::Method::Staged;
    let mut asked = Box::pin(import::import(&test.cloud, &ann, id, method, json!({})));
    let now = futures::poll!(&mut asked);
    assert!(now.is_pending());
    drop(asked);
    for _ in 0..1000 {
        if show(&test.cloud, &ann, id).await.unwrap().status == Status::Active {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the image is still {:?}", show(&test.cloud, &ann, id).await);
}

#[tokio::test]
async fn an_image_without_bytes_gives_none() {
    let test = cloud().await;
    let ann = test.context("ann", "shop", "member").await;
    let id = queued(&test, &ann, "raw").await;
    let empty = move |conn: &rusqlite::Connection| {
        let sql = "UPDATE images SET status = 'active', size = 0 WHERE id = ?1";
        Ok::<_, Error>(conn.execute(sql, [id.to_string()])?)
    };
    assert_eq!(test.cloud.store.write("test", empty).await.unwrap(), 1);
    assert!(data::download(&test.cloud, &ann, id).await.unwrap().is_none());
}

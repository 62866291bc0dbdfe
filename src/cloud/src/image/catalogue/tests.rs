//! The web that tests have plays the vendor.

use serde_json::json;

use super::*;
use crate::driver::DriverError;
use crate::image::list::Filter;
use crate::testing::{TestCloud, WebEnd, WebPage, cloud};

const URL: &str = "https://vendor.example/current/disk.img";
const SUMS: &str = "https://vendor.example/current/SHA256SUMS";

fn entry() -> CatalogueEntry {
    CatalogueEntry {
        name: "Vendor 1".into(),
        url: URL.into(),
        checksums: SUMS.into(),
        algorithm: Algorithm::Sha256,
        disk_format: model::disk::ImageFormat::Qcow2,
        min_disk: 8,
        min_ram: 512,
        until: None,
        properties: [("os_distro".to_owned(), "vendor".to_owned())].into(),
    }
}

async fn world() -> TestCloud {
    let mut test = cloud().await;
    settings(&mut test, |settings| {
        settings.entries = vec![entry()];
        settings.retention = Duration::ZERO;
    });
    test
}

fn settings(test: &mut TestCloud, change: impl FnOnce(&mut crate::config::Catalogue)) {
    match Arc::get_mut(&mut test.cloud) {
        Some(cloud) => change(&mut cloud.config.catalogue),
        None => panic!("the cloud is shared"),
    }
}

fn sha256(bytes: &[u8]) -> String {
    data::hex(&Sha256::digest(bytes))
}

/// The vendor has this version, and says that its digest is that one's.
fn publish(test: &TestCloud, bytes: &[u8], digest_of: &[u8]) {
    let list = format!(
        "{}  other.img\n{} *disk.img\n",
        sha256(b"other"),
        sha256(digest_of)
    );
    let page = WebPage {
        modified: Some(1_234_567_890_000_000),
        ..WebPage::whole(bytes)
    };
    let web = &mut test.drivers.state().web;
    web.insert(URL.into(), page);
    web.insert(SUMS.into(), WebPage::whole(list.as_bytes()));
}

/// What everyone sees in a list, hidden images or others.
async fn seen(test: &TestCloud, hidden: bool) -> Vec<Image> {
    let ann = test.context("ann", "one", "member").await;
    let filter = Filter {
        hidden,
        ..Filter::default()
    };
    super::super::list::list(&test.cloud, &ann, filter, Vec::new())
        .await
        .unwrap()
}

async fn state(test: &TestCloud) -> (String, String) {
    let all = known(&test.cloud).await.unwrap();
    assert_eq!(all.len(), 1);
    (all[0].state.clone(), all[0].reason.clone())
}

fn downloads(test: &TestCloud) -> usize {
    let call = format!("web_get {URL}");
    test.drivers
        .state()
        .calls
        .iter()
        .filter(|other| **other == call)
        .count()
}

/// All images that have not gone.
async fn images(test: &TestCloud) -> i64 {
    let count = test.cloud.store.read(|conn| {
        let sql = "SELECT count(*) FROM images WHERE status != 'pending_delete'";
        Ok::<i64, Error>(conn.query_row(sql, [], |row| row.get(0))?)
    });
    count.await.unwrap()
}

#[tokio::test]
async fn a_vendors_image_comes_once_and_with_all_that_is_known_of_it() {
    let test = world().await;
    publish(&test, b"version one", b"version one");
    assert_eq!(refresh(&test.cloud).await.unwrap(), None);
    let images = seen(&test, false).await;
    let [image] = &images[..] else {
        panic!("{images:?}")
    };
    assert_eq!(image.name.as_deref(), Some("Vendor 1"));
    assert_eq!(
        (image.status, image.visibility),
        (Status::Active, Visibility::Public)
    );
    assert_eq!((image.min_disk, image.min_ram, image.size), (8, 512, Some(11)));
    let of = |key: &str| image.properties[key].as_str();
    assert_eq!(of("os_distro"), "vendor");
    assert_eq!(of("image_source"), URL);
    assert_eq!(of("image_build_date"), "2009-02-13");
    assert_eq!((of("provided_until"), of("hash_algo")), ("none", "sha256"));
    assert_eq!(of("hash_value"), sha256(b"version one"));
    let owner = test.cloud.store.read(|conn| {
        let sql = "SELECT id FROM projects WHERE name = 'service'";
        Ok::<String, Error>(conn.query_row(sql, [], |row| row.get(0))?)
    });
    assert_eq!(image.owner, owner.await.unwrap());
    assert_eq!(state(&test).await.0, "available");
    // Unchanged: nothing happens.
    assert_eq!(refresh(&test.cloud).await.unwrap(), None);
    assert_eq!(seen(&test, false).await, images);
    assert_eq!(downloads(&test), 1);
    // Only administrators ask how it is.
    let ann = test.context("ann", "one", "member").await;
    assert!(matches!(list(&test.cloud, &ann).await, Err(Error::Forbidden(_))));
    let admin = test.context("admin", "admin", "admin").await;
    assert_eq!(list(&test.cloud, &admin).await.unwrap()[0].image, Some(image.id));
}

#[tokio::test]
async fn a_new_version_hides_the_old_one_which_goes_when_nothing_needs_it() {
    let mut test = world().await;
    settings(&mut test, |settings| {
        settings.retention = Duration::from_secs(3600)
    });
    publish(&test, b"version one", b"version one");
    refresh(&test.cloud).await.unwrap();
    let old = seen(&test, false).await[0].id;
    publish(&test, b"version two", b"version two");
    assert_eq!(refresh(&test.cloud).await.unwrap(), None);
    let new = seen(&test, false).await;
    assert_eq!(
        (new.len(), new[0].properties["hash_value"].clone()),
        (1, sha256(b"version two"))
    );
    assert_ne!(new[0].id, old);
    // Within its retention it can still be used by those who know it.
    assert_eq!(
        seen(&test, true)
            .await
            .iter()
            .map(|image| image.id)
            .collect::<Vec<_>>(),
        [old]
    );
    let ann = test.context("ann", "one", "member").await;
    super::super::get_for_boot(&test.cloud, &ann, old).await.unwrap();
    refresh(&test.cloud).await.unwrap();
    assert_eq!(seen(&test, true).await.len(), 1);
    // Retention is over, but someone holds it.
    settings(&mut test, |settings| settings.retention = Duration::ZERO);
    let admin = test.context("admin", "admin", "admin").await;
    let protect = |on: bool| {
        let step = super::super::update::Step::Replace("protected".into(), json!(on));
        super::super::update::update(&test.cloud, &admin, old, vec![step])
    };
    protect(true).await.unwrap();
    refresh(&test.cloud).await.unwrap();
    assert_eq!(seen(&test, true).await.len(), 1);
    protect(false).await.unwrap();
    refresh(&test.cloud).await.unwrap();
    assert!(seen(&test, true).await.is_empty());
    assert_eq!(seen(&test, false).await[0].id, new[0].id);
}

#[tokio::test]
async fn bytes_with_another_digest_are_never_an_image() {
    let test = world().await;
    publish(&test, b"forged", b"version one");
    let why = refresh(&test.cloud).await.unwrap().unwrap();
    assert!(why.contains("digest"), "{why}");
    assert_eq!(state(&test).await.0, "unavailable");
    assert!(state(&test).await.1.contains("it is not used"));
    assert_eq!(images(&test).await, 0);
    assert!(
        test.drivers.state().images.is_empty(),
        "it was not even converted"
    );
    // Nor do they take the place of a good one.
    publish(&test, b"version one", b"version one");
    refresh(&test.cloud).await.unwrap();
    let good = seen(&test, false).await;
    publish(&test, b"forged", b"version two");
    assert!(refresh(&test.cloud).await.unwrap().is_some());
    assert_eq!(seen(&test, false).await, good);
    assert_eq!(images(&test).await, 1);
}

#[tokio::test]
async fn what_cannot_be_had_is_unavailable_and_leaves_nothing() {
    let test = world().await;
    // Offline from the beginning.
    assert!(refresh(&test.cloud).await.unwrap().is_some());
    assert_eq!(
        state(&test).await,
        ("unavailable".into(), "The server cannot be reached.".into())
    );
    let list = |text: &str| {
        test.drivers
            .state()
            .web
            .insert(SUMS.into(), WebPage::whole(text.as_bytes()));
    };
    for text in [
        "",
        "nothing",
        &format!("{}  else.img", sha256(b"x")),
        &"x".repeat(MAX_LIST + 1),
    ] {
        list(text);
        assert!(refresh(&test.cloud).await.unwrap().is_some());
        assert_eq!(images(&test).await, 0);
    }
    list(&format!("{}  disk.img", sha256(b"version one")));
    assert!(
        refresh(&test.cloud).await.unwrap().is_some(),
        "the list alone is there"
    );
    let broken = WebPage {
        end: WebEnd::BrokenOff("gone".into()),
        ..WebPage::whole(b"version one")
    };
    test.drivers.state().web.insert(URL.into(), broken);
    assert!(refresh(&test.cloud).await.unwrap().is_some());
    publish(&test, b"version one", b"version one");
    test.drivers
        .fail_next("import_image", DriverError::Failed("disk".into()));
    assert!(refresh(&test.cloud).await.unwrap().is_some());
    assert_eq!(images(&test).await, 0);
    // Back again; and what is there stays through the next outage.
    assert_eq!(refresh(&test.cloud).await.unwrap(), None);
    test.drivers.state().web.clear();
    assert!(refresh(&test.cloud).await.unwrap().is_some());
    assert_eq!(seen(&test, false).await.len(), 1);
    let known = known(&test.cloud).await.unwrap();
    assert!(known[0].image.is_some() && known[0].fresh_at.is_some() && known[0].state == "unavailable");
}

#[tokio::test]
async fn a_daemon_that_dies_leaves_nothing_half_fetched() {
    let test = world().await;
    reserve(&test.cloud, &entry(), sha256(b"version one"), now())
        .await
        .unwrap();
    assert!(
        seen(&test, false).await.is_empty() && seen(&test, true).await.is_empty(),
        "nobody sees it yet"
    );
    super::super::recover(&test.cloud).await.unwrap();
    publish(&test, b"version one", b"version one");
    assert_eq!(refresh(&test.cloud).await.unwrap(), None);
    assert_eq!(images(&test).await, 1);
    assert_eq!(seen(&test, false).await.len(), 1);
}

#[tokio::test]
async fn what_leaves_the_catalogue_is_superseded_and_without_one_all_stays() {
    let mut test = world().await;
    publish(&test, b"version one", b"version one");
    refresh(&test.cloud).await.unwrap();
    settings(&mut test, |settings| settings.entries.clear());
    refresh(&test.cloud).await.unwrap();
    assert_eq!(seen(&test, false).await.len(), 1, "switched off");
    // Its end of life has come.
    settings(&mut test, |settings| {
        let until = OffsetDateTime::from_unix_timestamp(0).unwrap().date();
        settings.entries = vec![CatalogueEntry {
            until: Some(until),
            ..entry()
        }];
        settings.retention = Duration::from_secs(3600);
    });
    assert_eq!(refresh(&test.cloud).await.unwrap(), None);
    assert_eq!(state(&test).await.0, "retired");
    assert_eq!(
        (seen(&test, false).await.len(), seen(&test, true).await.len()),
        (0, 1)
    );
    // Another catalogue does not have it.
    settings(&mut test, |settings| {
        settings.entries = vec![CatalogueEntry {
            name: "Other".into(),
            ..entry()
        }];
        settings.retention = Duration::ZERO;
    });
    refresh(&test.cloud).await.unwrap();
    assert_eq!(state(&test).await.0, "available");
    let names: Vec<_> = seen(&test, false)
        .await
        .into_iter()
        .filter_map(|image| image.name)
        .collect();
    assert_eq!(names, ["Other"]);
    assert!(seen(&test, true).await.is_empty());
}

#[test]
fn digests_are_found_in_every_form_of_list() {
    let (one, two) = (sha256(b"1"), sha256(b"2"));
    let long = data::hex(&Sha512::digest(b"1"));
    let find = |list: &str| digest_of(list, "disk.img", Algorithm::Sha256);
    assert_eq!(
        find(&format!("{two}  other.img\n{one}  disk.img\n")),
        Some(one.clone())
    );
    assert_eq!(find(&format!("{one} *disk.img")), Some(one.clone()));
    assert_eq!(find(&format!("{one}  ./disk.img\r\n")), Some(one.clone()));
    assert_eq!(
        find(&format!(
            "# comment\nSHA256 (disk.img) = {}\n",
            one.to_uppercase()
        )),
        Some(one.clone())
    );
    let flatcar = format!("# SHA256 HASH\n{one}  disk.img\n# SHA512 HASH\n{long}  disk.img\n");
    assert_eq!(find(&flatcar), Some(one.clone()));
    assert_eq!(digest_of(&flatcar, "disk.img", Algorithm::Sha512), Some(long));
    for wrong in [
        String::new(),
        one.clone(),
        format!("{one}  disk.img.old"),
        format!("{one}  a/disk.img"),
        format!("{}  disk.img", &one[1..]),
        format!("{}  disk.img", "g".repeat(64)),
        format!("{one}  disk.img\n{two}  disk.img"),
        format!("SHA256 (other) = {one}"),
        format!(") = {one}"),
    ] {
        assert_eq!(find(&wrong), None, "{wrong}");
    }
}

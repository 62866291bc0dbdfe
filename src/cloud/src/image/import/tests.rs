use serde_json::json;

use super::*;
use crate::driver::DriverError;
use crate::image::{self, Status, show};
use crate::testing::{TestCloud, WebEnd, WebPage, cloud};

const URI: &str = "http://mirror.example/image";

async fn queued(test: &TestCloud, ctx: &Context) -> Uuid {
    let document = json!({"name": "i", "disk_format": "raw", "container_format": "bare"});
    let document = document.as_object().cloned().unwrap_or_default();
    update::create(&test.cloud, ctx, document).await.unwrap().id
}

async fn begin_web(test: &TestCloud, ctx: &Context, id: Uuid) -> Result<Uuid> {
    let input = json!({"image_id": id, "import_req": {"method": {"name": "web-download", "uri": URI}}});
    import(&test.cloud, ctx, id, Method::Web(URI.into()), input).await
}

/// The task, once it has ended.
async fn ended(test: &TestCloud, ctx: &Context, id: Uuid) -> tasks::Task {
    for _ in 0..2000 {
        let all = tasks::of_image(&test.cloud, ctx, id).await.unwrap();
        if let Some(task) = all.into_iter().next()
            && task.status != "processing"
        {
            return task;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no task of {id} ends");
}

fn no_file(test: &TestCloud) -> bool {
    let Ok(files) = std::fs::read_dir(&test.cloud.config.staging_dir) else {
        return true;
    };
    files
        .filter(|file| file.as_ref().is_ok_and(|file| file.path().is_file()))
        .count()
        == 0
}

#[tokio::test]
async fn a_file_of_the_web_becomes_an_image_as_if_it_were_uploaded() {
    let test = cloud().await;
    let mut ctx = test.context("ann", "one", "member").await;
    ctx.request_id = "req-1".into();
    let id = queued(&test, &ctx).await;
    test.drivers
        .state()
        .web
        .insert(URI.into(), WebPage::whole(b"abc"));
    begin_web(&test, &ctx, id).await.unwrap();
    let task = ended(&test, &ctx, id).await;
    assert_eq!((task.status.as_str(), task.message.as_str()), ("success", ""));
    assert_eq!(
        (task.kind.as_str(), task.request_id.as_str()),
        ("api_image_import", "req-1")
    );
    assert_eq!(task.input["import_req"]["method"]["uri"], URI);
    assert!(task.expires_at.is_some());
    let image = show(&test.cloud, &ctx, id).await.unwrap();
    assert_eq!((image.status, image.size), (Status::Active, Some(3)));
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
    assert_eq!(image.properties["os_glance_importing_to_stores"], "");
    assert_eq!(image.properties["os_glance_failed_import"], "");
    // It is no longer one that waits for bytes.
    assert!(matches!(
        begin_web(&test, &ctx, id).await,
        Err(Error::Conflict(_))
    ));
}

#[tokio::test]
async fn what_fails_leaves_the_image_queued_and_says_why() {
    let mut test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx).await;
    match std::sync::Arc::get_mut(&mut test.cloud) {
        Some(cloud) => cloud.config.max_image_bytes = 5000,
        None => panic!("the cloud is shared"),
    }
    let bytes = |count: usize| WebPage::whole(&vec![7; count]);
    let cases = [
        (None, "cannot be reached"),
        (
            Some(WebPage {
                end: WebEnd::BrokenOff("The server broke off.".into()),
                ..bytes(2500)
            }),
            "broke off",
        ),
        (
            Some(WebPage {
                length: Some(9),
                ..bytes(10)
            }),
            "10 bytes; 9 were announced",
        ),
        (
            Some(WebPage {
                length: Some(11),
                ..bytes(10)
            }),
            "10 bytes; 11 were announced",
        ),
        (Some(bytes(0)), "no bytes"),
        (Some(bytes(5001)), "larger than 5000"),
        (
            Some(WebPage {
                length: None,
                ..bytes(5001)
            }),
            "larger than 5000",
        ),
        // Announced as too large, it is not even begun.
        (
            Some(WebPage {
                length: Some(u64::MAX),
                end: WebEnd::Silence,
                ..bytes(1)
            }),
            "larger than 5000",
        ),
    ];
    for (page, why) in cases {
        test.drivers.state().web.clear();
        if let Some(page) = page {
            test.drivers.state().web.insert(URI.into(), page);
        }
        begin_web(&test, &ctx, id).await.unwrap();
        let task = ended(&test, &ctx, id).await;
        assert_eq!(task.status, "failure", "{why}");
        assert!(task.message.contains(why), "{} does not say {why}", task.message);
        let image = show(&test.cloud, &ctx, id).await.unwrap();
        assert_eq!(
            (image.status, image.size, image.checksum),
            (Status::Queued, None, None)
        );
        assert_eq!(image.properties["os_glance_failed_import"], STORE);
        assert_eq!(image.properties["os_glance_importing_to_stores"], "");
        assert!(no_file(&test));
    }
    // Bytes that are not what they should be are the tenant's matter, a failure of ours is not.
    test.drivers.state().web.insert(URI.into(), bytes(10));
    for (error, why) in [
        (
            DriverError::BadInput("it names a backing file".into()),
            "backing file",
        ),
        (
            DriverError::Failed("/var/lib/secret".into()),
            "its operator finds the reason",
        ),
    ] {
        test.drivers.fail_next("import_image", error);
        begin_web(&test, &ctx, id).await.unwrap();
        assert!(ended(&test, &ctx, id).await.message.contains(why));
    }
    // And now it works.
    begin_web(&test, &ctx, id).await.unwrap();
    assert_eq!(ended(&test, &ctx, id).await.status, "success");
}

#[tokio::test]
async fn quotas_and_rights_hold() {
    let mut test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let reader = test.context("rob", "one", "reader").await;
    let bob = test.context("bob", "two", "member").await;
    match std::sync::Arc::get_mut(&mut test.cloud) {
        Some(cloud) => cloud.config.max_project_image_bytes = 100,
        None => panic!("the cloud is shared"),
    }
    let (a, b) = (queued(&test, &ctx).await, queued(&test, &ctx).await);
    test.drivers
        .state()
        .web
        .insert(URI.into(), WebPage::whole(&[1; 60]));
    assert!(matches!(
        begin_web(&test, &reader, a).await,
        Err(Error::Forbidden(_))
    ));
    assert_eq!(
        begin_web(&test, &bob, a).await.unwrap_err().kind(),
        Some(crate::error::Kind::NotFound)
    );
    let file = Method::Web("file:///etc/passwd".into());
    let refused = import(&test.cloud, &ctx, a, file, json!({})).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    begin_web(&test, &ctx, a).await.unwrap();
    assert_eq!(ended(&test, &ctx, a).await.status, "success");
    begin_web(&test, &ctx, b).await.unwrap();
    assert!(ended(&test, &ctx, b).await.message.contains("over its limit"));
    // A server that announces nothing does not get around it.
    let silent = WebPage {
        length: None,
        ..WebPage::whole(&[1; 60])
    };
    test.drivers.state().web.insert(URI.into(), silent);
    begin_web(&test, &ctx, b).await.unwrap();
    assert!(ended(&test, &ctx, b).await.message.contains("over its limit"));
    assert_eq!(show(&test.cloud, &ctx, b).await.unwrap().status, Status::Queued);
    // What others ask for is not shown to those who only see the image.
    let admin = test.context("admin", "admin", "admin").await;
    let public = vec![update::Step::Replace("visibility".into(), "public".into())];
    update::update(&test.cloud, &admin, a, public).await.unwrap();
    assert!(tasks::of_image(&test.cloud, &bob, a).await.unwrap().is_empty());
    assert_eq!(tasks::of_image(&test.cloud, &admin, a).await.unwrap().len(), 1);
    assert!(tasks::list(&test.cloud, &ctx).await.is_err());
    assert_eq!(tasks::list(&test.cloud, &admin).await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_image_that_is_deleted_is_fetched_no_longer() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx).await;
    let silent = WebPage {
        end: WebEnd::Silence,
        ..WebPage::whole(&[1; 60])
    };
    test.drivers.state().web.insert(URI.into(), silent);
    begin_web(&test, &ctx, id).await.unwrap();
    assert_eq!(
        show(&test.cloud, &ctx, id).await.unwrap().status,
        Status::Importing
    );
    update::delete(&test.cloud, &ctx, id).await.unwrap();
    for _ in 0..2000 {
        let left = test.cloud.store.read(|conn| {
            Ok::<i64, Error>(conn.query_row("SELECT count(*) FROM images", [], |row| row.get(0))?)
        });
        if left.await.unwrap() == 0 && no_file(&test) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it is still fetched");
}

#[tokio::test]
async fn a_restart_ends_a_download_and_says_so() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let admin = test.context("admin", "admin", "admin").await;
    let id = queued(&test, &ctx).await;
    let silent = WebPage {
        end: WebEnd::Silence,
        ..WebPage::whole(&[1; 60])
    };
    test.drivers.state().web.insert(URI.into(), silent);
    begin_web(&test, &ctx, id).await.unwrap();
    let attributes = json!({"disk_format": "raw", "container_format": "bare"});
    let attributes = attributes.as_object().cloned().unwrap_or_default();
    create(&test.cloud, &admin, attributes, URI.into(), json!({}))
        .await
        .unwrap();
    image::recover(&test.cloud).await.unwrap();
    let task = ended(&test, &ctx, id).await;
    assert_eq!(task.status, "failure");
    assert!(task.message.contains("restarted"), "{}", task.message);
    let image = show(&test.cloud, &ctx, id).await.unwrap();
    assert_eq!(image.status, Status::Queued);
    assert_eq!(image.properties["os_glance_failed_import"], STORE);
    // What a task made to fill goes with it.
    let all = image::list::list(&test.cloud, &admin, Default::default(), Vec::new())
        .await
        .unwrap();
    assert_eq!(all.iter().map(|image| image.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_task_makes_an_image_and_fetches_it_or_leaves_none() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let admin = test.context("admin", "admin", "admin").await;
    let attributes = json!({"name": "n", "disk_format": "raw", "container_format": "bare"});
    let attributes = attributes.as_object().cloned().unwrap_or_default();
    let make =
        async |ctx: &Context| create(&test.cloud, ctx, attributes.clone(), URI.into(), json!({"a": 1})).await;
    assert!(matches!(make(&ctx).await, Err(Error::Forbidden(_))));
    let wait = async |task: Uuid| {
        loop {
            let task = tasks::show(&test.cloud, &admin, task).await.unwrap();
            if task.status != "processing" {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let failed = wait(make(&admin).await.unwrap()).await;
    assert_eq!(
        (failed.kind.as_str(), failed.status.as_str()),
        ("import", "failure")
    );
    let all = image::list::list(&test.cloud, &admin, Default::default(), Vec::new())
        .await
        .unwrap();
    assert!(all.is_empty());
    test.drivers
        .state()
        .web
        .insert(URI.into(), WebPage::whole(b"abc"));
    let done = wait(make(&admin).await.unwrap()).await;
    assert_eq!(done.status, "success");
    let id = done.result.unwrap()["image_id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        show(&test.cloud, &admin, id).await.unwrap().status,
        Status::Active
    );
}

#[tokio::test]
async fn tasks_do_not_pile_up() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let admin = test.context("admin", "admin", "admin").await;
    let id = queued(&test, &ctx).await;
    let project = ctx.project().unwrap().to_owned();
    let old = test.cloud.store.write("test", move |conn| {
        for n in 0..1500_i64 {
            conn.execute(
                "INSERT INTO image_tasks (id, type, status, owner, user_id, image_id, request_id, input, message,
                     created_at, updated_at, expires_at) VALUES (?1, 'api_image_import', 'failure', ?2, '', ?3, '', '{}', '',
                     ?4, 0, ?5)",
                params![Uuid::new_v4().to_string(), project, id.to_string(), n, i64::MAX],
            )?;
        }
        Ok::<_, Error>(())
    });
    old.await.unwrap();
    begin_web(&test, &ctx, id).await.unwrap();
    ended(&test, &ctx, id).await;
    assert_eq!(tasks::list(&test.cloud, &admin).await.unwrap().len(), 1001);
    let all_old = test.cloud.store.write("test", |conn| {
        Ok::<_, Error>(conn.execute("UPDATE image_tasks SET expires_at = 1", [])?)
    });
    all_old.await.unwrap();
    tasks::expire(&test.cloud).await.unwrap();
    assert!(tasks::list(&test.cloud, &admin).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_the_service_says_of_an_image_no_tenant_changes() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = queued(&test, &ctx).await;
    test.drivers
        .state()
        .web
        .insert(URI.into(), WebPage::whole(b"abc"));
    begin_web(&test, &ctx, id).await.unwrap();
    ended(&test, &ctx, id).await;
    let key = || "os_glance_failed_import".to_owned();
    for step in [
        update::Step::Remove(key()),
        update::Step::Replace(key(), "x".into()),
        update::Step::Add(key(), "x".into()),
    ] {
        assert!(matches!(
            update::update(&test.cloud, &ctx, id, vec![step]).await,
            Err(Error::Forbidden(_))
        ));
    }
}

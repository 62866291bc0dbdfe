//! Rules of secrets, on a whole cloud in a temporary folder.

use uuid::Uuid;

use super::*;
use crate::error::Kind;
use crate::testing::{TestCloud, cloud};
use crate::{Context, Error};

const PART: Part = Part { offset: 0, limit: 10 };

fn text(payload: &str) -> Option<Payload> {
    Some(Payload {
        content_type: "text/plain".into(),
        bytes: payload.as_bytes().to_vec().into(),
    })
}

async fn stored(test: &TestCloud, ctx: &Context, payload: &str) -> Uuid {
    let new = NewSecret {
        payload: text(payload),
        ..NewSecret::default()
    };
    create(&test.cloud, ctx, new).await.unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind().unwrap()
}

#[tokio::test]
async fn payloads_lie_encrypted_under_a_key_that_lies_encrypted() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let id = stored(&test, &ctx, "very secret words").await;
    let found = payload(&test.cloud, &ctx, id).await.unwrap();
    assert_eq!(found.bytes.as_slice(), b"very secret words");
    assert!(!format!("{found:?}").contains("words"));
    let other = test.context("bob", "two", "member").await;
    stored(&test, &other, "x").await;
    let keys: Vec<Vec<u8>> = test
        .cloud
        .store
        .read(|conn| {
            let mut sql = conn.prepare("SELECT wrapped FROM secret_keys")?;
            Ok::<_, Error>(
                sql.query_map([], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?,
            )
        })
        .await
        .unwrap();
    assert_eq!(keys.len(), 2, "one for each project");
    // Nowhere in the folder of the database do the words stand.
    let store = test.dir.path().join("store");
    for file in std::fs::read_dir(&store).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !bytes.windows(17).any(|part| part == b"very secret words"),
                "{}",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn roles_and_projects_part_who_reads_what() {
    let test = cloud().await;
    let c = &test.cloud;
    let ann = test.context("ann", "one", "member").await;
    let id = stored(&test, &ann, "foo").await;
    let reader = test.context("ray", "one", "reader").await;
    assert_eq!(show(c, &reader, id).await.unwrap().id, id);
    assert_eq!(list(c, &reader, Filter::default(), PART).await.unwrap().1, 1);
    assert_eq!(kind(payload(c, &reader, id).await), Kind::Forbidden);
    assert_eq!(kind(delete(c, &reader, id).await), Kind::Forbidden);
    assert_eq!(
        kind(create(c, &reader, NewSecret::default()).await),
        Kind::Forbidden
    );
    let colleague = test.context("col", "one", "member").await;
    payload(c, &colleague, id).await.unwrap();
    for stranger in [
        test.context("bob", "two", "member").await,
        test.context("admin", "admin", "admin").await,
    ] {
        assert_eq!(kind(show(c, &stranger, id).await), Kind::NotFound);
        assert_eq!(kind(payload(c, &stranger, id).await), Kind::NotFound);
        assert_eq!(kind(delete(c, &stranger, id).await), Kind::NotFound);
        assert_eq!(list(c, &stranger, Filter::default(), PART).await.unwrap().1, 0);
    }
}

#[tokio::test]
async fn access_lists_open_and_close() {
    let test = cloud().await;
    let c = &test.cloud;
    let (ann, col, bob) = (
        test.context("ann", "one", "member").await,
        test.context("col", "one", "member").await,
        test.context("bob", "two", "member").await,
    );
    let id = stored(&test, &ann, "foo").await;
    let change = AclChange {
        project_access: Some(false),
        users: Some(vec![bob.user_id.clone()]),
    };
    assert_eq!(
        kind(acl::set(c, &bob, id, false, change.clone(), false).await),
        Kind::NotFound
    );
    acl::set(c, &ann, id, false, change, false).await.unwrap();
    assert_eq!(kind(payload(c, &col, id).await), Kind::Forbidden);
    assert_eq!(kind(delete(c, &col, id).await), Kind::Forbidden);
    assert_eq!(list(c, &col, Filter::default(), PART).await.unwrap().1, 0);
    assert_eq!(payload(c, &bob, id).await.unwrap().bytes.as_slice(), b"foo");
    assert_eq!(
        kind(delete(c, &bob, id).await),
        Kind::NotFound,
        "to read is not to remove"
    );
    let shared = Filter {
        acl_only: true,
        ..Filter::default()
    };
    assert_eq!(list(c, &bob, shared, PART).await.unwrap().0[0].id, id);
    payload(c, &ann, id).await.unwrap();
    // What a merge does not name stays.
    let open = AclChange {
        project_access: Some(true),
        users: None,
    };
    acl::set(c, &ann, id, false, open, true).await.unwrap();
    assert_eq!(
        acl::show(c, &ann, id, false).await.unwrap().users,
        std::slice::from_ref(&bob.user_id)
    );
    payload(c, &col, id).await.unwrap();
    acl::remove(c, &ann, id, false).await.unwrap();
    assert_eq!(kind(payload(c, &bob, id).await), Kind::NotFound);
}

#[tokio::test]
async fn a_payload_comes_once_and_secrets_end() {
    let test = cloud().await;
    let c = &test.cloud;
    let ann = test.context("ann", "one", "member").await;
    let id = create(c, &ann, NewSecret::default()).await.unwrap();
    assert_eq!(kind(payload(c, &ann, id).await), Kind::NotFound);
    set_payload(c, &ann, id, text("a").unwrap()).await.unwrap();
    assert_eq!(
        kind(set_payload(c, &ann, id, text("b").unwrap()).await),
        Kind::Conflict
    );
    assert_eq!(payload(c, &ann, id).await.unwrap().bytes.as_slice(), b"a");
    let past = NewSecret {
        expires_at: Some(1),
        ..NewSecret::default()
    };
    assert_eq!(kind(create(c, &ann, past).await), Kind::BadRequest);
    let sql = "UPDATE secrets SET expires_at = 1";
    c.store
        .write("test", move |conn| Ok::<_, Error>(conn.execute(sql, [])?))
        .await
        .unwrap();
    assert_eq!(kind(show(c, &ann, id).await), Kind::NotFound);
    assert_eq!(list(c, &ann, Filter::default(), PART).await.unwrap().1, 0);
    let large = NewSecret {
        payload: text(&"x".repeat(20_001)),
        ..NewSecret::default()
    };
    assert!(matches!(create(c, &ann, large).await, Err(Error::TooLarge(_))));
}

#[tokio::test]
async fn quotas_hold_and_projects_take_their_secrets_along() {
    let test = cloud().await;
    let c = &test.cloud;
    let admin = test.context("admin", "admin", "admin").await;
    let ann = test.context("ann", "one", "member").await;
    let project = ann.project().unwrap().to_owned();
    quota::update(c, &admin, &project, [(Resource::Secrets, 2)].into())
        .await
        .unwrap();
    assert_eq!(quota::own(c, &ann).await.unwrap()[&Resource::Secrets], 2);
    let secret = stored(&test, &ann, "foo").await;
    let order = KeyOrder {
        algorithm: "AES".into(),
        bit_length: 256,
        ..KeyOrder::default()
    };
    let id = super::order::create(c, &ann, order.clone()).await.unwrap();
    let made = super::order::show(c, &ann, id).await.unwrap().secret_id;
    assert_eq!(payload(c, &ann, made).await.unwrap().bytes.len(), 32);
    assert_eq!(
        kind(super::order::create(c, &ann, order.clone()).await),
        Kind::QuotaExceeded
    );
    let odd = KeyOrder {
        bit_length: 100,
        ..order
    };
    assert_eq!(kind(super::order::create(c, &ann, odd).await), Kind::BadRequest);
    let new = NewContainer {
        kind: "generic".into(),
        refs: vec![("a".into(), secret), ("b".into(), made)],
        ..NewContainer::default()
    };
    let box_ = container::create(c, &ann, new).await.unwrap();
    delete(c, &ann, secret).await.unwrap();
    assert_eq!(
        container::show(c, &ann, box_).await.unwrap().refs,
        [("b".into(), made)]
    );
    crate::identity::projects::delete(c, &admin, &project)
        .await
        .unwrap();
    let left: i64 = c
        .store
        .read(|conn| {
            let sql = "SELECT (SELECT count(*) FROM secrets) + (SELECT count(*) FROM secret_keys)
                 + (SELECT count(*) FROM secret_containers) + (SELECT count(*) FROM secret_orders)
                 + (SELECT count(*) FROM secret_container_refs) + (SELECT count(*) FROM secret_quotas)";
            Ok::<_, Error>(conn.query_row(sql, [], |row| row.get(0))?)
        })
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn containers_have_what_their_kind_asks_for() {
    let test = cloud().await;
    let c = &test.cloud;
    let ann = test.context("ann", "one", "member").await;
    let bob = test.context("bob", "two", "member").await;
    let (a, b) = (stored(&test, &ann, "a").await, stored(&test, &ann, "b").await);
    let make = |kind: &str, refs: &[(&str, Uuid)]| NewContainer {
        name: None,
        kind: kind.into(),
        refs: refs.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect(),
    };
    for wrong in [
        make("bag", &[]),
        make("rsa", &[("public_key", a)]),
        make("rsa", &[("public_key", a), ("private_key", b), ("other", b)]),
        make("generic", &[("x", a), ("x", a)]),
    ] {
        assert_eq!(kind(container::create(c, &ann, wrong).await), Kind::BadRequest);
    }
    let keys = make("rsa", &[("public_key", a), ("private_key", b)]);
    let id = container::create(c, &ann, keys.clone()).await.unwrap();
    assert_eq!(
        kind(container::add_secret(c, &ann, id, "z", a).await),
        Kind::BadRequest
    );
    assert_eq!(kind(container::show(c, &bob, id).await), Kind::NotFound);
    assert_eq!(
        kind(container::create(c, &bob, keys).await),
        Kind::NotFound,
        "the secrets are another's"
    );
    let id = container::create(c, &ann, make("generic", &[])).await.unwrap();
    container::add_secret(c, &ann, id, "z", a).await.unwrap();
    assert_eq!(
        kind(container::add_secret(c, &ann, id, "z", a).await),
        Kind::Conflict
    );
    container::remove_secret(c, &ann, id, "z", a).await.unwrap();
    assert_eq!(
        kind(container::remove_secret(c, &ann, id, "z", a).await),
        Kind::NotFound
    );
}

#[tokio::test]
async fn expired_secrets_use_up_no_quota() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "member").await;
    let admin = test.context("admin", "admin", "admin").await;
    let project = ctx.project().unwrap().to_owned();
    let one = [(Resource::Secrets, 1)].into();
    quota::update(&test.cloud, &admin, &project, one).await.unwrap();
    let first = stored(&test, &ctx, "first").await;
    let again = NewSecret::default();
    assert_eq!(kind(create(&test.cloud, &ctx, again).await), Kind::QuotaExceeded);
    let long_ago = "UPDATE secrets SET expires_at = 1";
    let expire = test
        .cloud
        .store
        .write("test", move |conn| Ok::<_, Error>(conn.execute(long_ago, [])?));
    assert_eq!(expire.await.unwrap(), 1);
    let second = stored(&test, &ctx, "second").await;
    let left = test.cloud.store.read(|conn| {
        let mut sql = conn.prepare("SELECT id FROM secrets")?;
        let rows = sql.query_map([], |row| row.get::<_, String>(0))?;
        Ok::<_, Error>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
    });
    assert_eq!(left.await.unwrap(), [second.to_string()], "without {first}");
}

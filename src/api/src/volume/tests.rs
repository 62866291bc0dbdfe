//! The API over a test cloud, request by request.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use cloud::testing::{self, TestCloud};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::AppState;

struct Api {
    test: TestCloud,
    router: Router,
    admin: String,
    member: String,
    reader: String,
    stranger: String,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Api {
    async fn new() -> Api {
        let test = testing::cloud().await;
        cloud::volume::spawn(test.cloud.clone());
        Api {
            router: crate::router(AppState::new(test.cloud.clone())),
            admin: test.admin_token().await,
            member: test.token("mia", "shop", "member").await,
            reader: test.token("rob", "shop", "reader").await,
            stranger: test.token("eve", "elsewhere", "member").await,
            test,
        }
    }

    async fn ask(&self, token: &str, version: &str, method: &str, path: &str, body: Option<Value>) -> Reply {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("/volume{path}"))
            .header("content-type", "application/json");
        if !token.is_empty() {
            request = request.header("x-auth-token", token);
        }
        if !version.is_empty() {
            request = request.header("openstack-api-version", format!("volume {version}"));
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let response = self
            .router
            .clone()
            .oneshot(request.body(body).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    async fn member(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let path = format!("/v3{path}");
        self.ask(&self.member, "3.71", method, &path, body).await
    }

    async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let path = format!("/v3{path}");
        self.ask(&self.admin, "3.71", method, &path, body).await
    }

    /// Makes something, and waits until it is available.
    async fn make(&self, kind: &str, of: &str, body: Value) -> String {
        let reply = self
            .member("POST", &format!("/{kind}"), Some(json!({of: body})))
            .await;
        assert_eq!(reply.status, 202, "{}", reply.body);
        let id = reply.body[of]["id"].as_str().unwrap().to_owned();
        self.until(kind, of, &id, "available").await;
        id
    }

    async fn volume(&self, name: &str) -> String {
        self.make("volumes", "volume", json!({"name": name, "size": 1}))
            .await
    }

    async fn until(&self, kind: &str, of: &str, id: &str, status: &str) {
        let mut events = self.test.cloud.store.subscribe();
        loop {
            let shown = self.member("GET", &format!("/{kind}/{id}"), None).await;
            if shown.body[of]["status"] == status {
                return;
            }
            assert_ne!(shown.body[of]["status"], "error", "{}", shown.body);
            let _ = events.recv().await;
        }
    }

    async fn gone(&self, path: &str) {
        let mut events = self.test.cloud.store.subscribe();
        while self.member("GET", path, None).await.status != 404 {
            let _ = events.recv().await;
        }
    }
}

#[tokio::test]
async fn the_documents_say_what_is_served() {
    let api = Api::new().await;
    let all = api.ask("", "", "GET", "/", None).await;
    assert_eq!(all.status, 300);
    let one = api.ask("", "", "GET", "/v3/", None).await;
    assert_eq!(one.status, 200);
    assert_eq!(one.body["versions"][0]["version"], "3.71");
    assert_eq!(one.body["versions"][0]["min_version"], "3.0");
    for (version, status, got) in [("3.59", 200, "volume 3.59"), ("", 200, "volume 3.0")] {
        let reply = api.ask(&api.member, version, "GET", "/v3/volumes", None).await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.headers["openstack-api-version"], got);
    }
    assert_eq!(
        api.ask(&api.member, "3.99", "GET", "/v3/volumes", None)
            .await
            .status,
        406
    );
    assert_eq!(
        api.ask(&api.member, "3", "GET", "/v3/volumes", None).await.status,
        400
    );
    assert_eq!(api.ask("", "", "GET", "/v3/volumes", None).await.status, 401);
    // A version does not have what came later.
    for (version, path) in [
        ("3.26", "/v3/attachments"),
        ("3.11", "/v3/volumes/summary"),
        ("3.2", "/v3/messages"),
    ] {
        assert_eq!(
            api.ask(&api.member, version, "GET", path, None).await.status,
            404,
            "{path}"
        );
    }
    // An id that was lost is no list.
    for method in ["GET", "DELETE", "PUT"] {
        let reply = api.member(method, "/volumes/", Some(json!({"volume": {}}))).await;
        assert_eq!(reply.status, 404, "{method}");
    }
}

#[tokio::test]
async fn the_project_may_stand_in_the_path_if_it_is_the_callers() {
    let api = Api::new().await;
    let id = api.volume("a").await;
    let ctx = api.test.cloud.identity.validate(&api.member).unwrap();
    let path = format!("/v3/{}/volumes/{id}", ctx.project().unwrap());
    let shown = api.ask(&api.member, "3.71", "GET", &path, None).await;
    assert_eq!(shown.status, 200);
    let link = shown.body["volume"]["links"][0]["href"].as_str().unwrap();
    assert!(link.ends_with(&path), "{link}");
    assert_eq!(
        api.ask(&api.stranger, "3.71", "GET", &path, None).await.status,
        400
    );
}

#[tokio::test]
async fn a_volume_lives_from_creation_to_deletion() {
    let api = Api::new().await;
    let id = api.volume("a").await;
    let shown = api.member("GET", &format!("/volumes/{id}"), None).await.body;
    let volume = &shown["volume"];
    assert_eq!(
        (&volume["bootable"], &volume["size"]),
        (&json!("false"), &json!(1))
    );
    assert_eq!(volume["volume_type"], "standard");
    assert!(
        volume.get("os-vol-host-attr:host").is_none(),
        "for administrators alone"
    );
    let update = json!({"volume": {"name": "b", "description": null, "metadata": {"k": "v"}}});
    let changed = api.member("PUT", &format!("/volumes/{id}"), Some(update)).await;
    assert_eq!(
        (changed.status.as_u16(), &changed.body["volume"]["name"]),
        (200, &json!("b"))
    );
    let action = format!("/volumes/{id}/action");
    for (body, status) in [
        (json!({"os-extend": {"new_size": 2}}), 202),
        (json!({"os-set_bootable": {"bootable": true}}), 200),
        (json!({"os-no-such-thing": {}}), 400),
        (json!({}), 400),
        (json!({"os-extend": {"new_size": "x"}}), 400),
        (json!({"os-reset_status": {"status": "error"}}), 403),
    ] {
        let reply = api.member("POST", &action, Some(body.clone())).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
        api.until("volumes", "volume", &id, "available").await;
    }
    let shown = api.member("GET", &format!("/volumes/{id}"), None).await.body;
    assert_eq!(
        (&shown["volume"]["size"], &shown["volume"]["bootable"]),
        (&json!(2), &json!("true"))
    );
    // Reading it and writing the same changes nothing.
    let same = json!({"volume": {
        "name": shown["volume"]["name"], "description": shown["volume"]["description"],
        "metadata": shown["volume"]["metadata"],
    }});
    let again = api
        .member("PUT", &format!("/volumes/{id}"), Some(same))
        .await
        .body;
    assert_eq!(again["volume"]["metadata"], shown["volume"]["metadata"]);
    assert_eq!(
        api.member("DELETE", &format!("/volumes/{id}"), None).await.status,
        202
    );
    api.gone(&format!("/volumes/{id}")).await;
}

#[tokio::test]
async fn hosts_are_for_administrators_alone() {
    let api = Api::new().await;
    let id = api.volume("a").await;
    let attach = json!({"os-attach": {"host_name": "node1", "mountpoint": "/dev/vdb"}});
    let attached = api
        .member("POST", &format!("/volumes/{id}/action"), Some(attach))
        .await;
    assert_eq!(attached.status, 202, "{}", attached.body);
    for path in [format!("/volumes/{id}"), "/volumes/detail".to_owned()] {
        let host = |reply: Reply| {
            let volume = match reply.body.get("volume") {
                Some(volume) => volume.clone(),
                None => reply.body["volumes"][0].clone(),
            };
            assert_eq!(volume["attachments"][0]["device"], "/dev/vdb", "{volume}");
            volume["attachments"][0]["host_name"].clone()
        };
        assert_eq!(host(api.member("GET", &path, None).await), Value::Null, "{path}");
        let all = if path.ends_with("detail") {
            "?all_tenants=1"
        } else {
            ""
        };
        let shown = api.admin("GET", &format!("{path}{all}"), None).await;
        assert_eq!(host(shown), "node1", "{path}");
    }
}

#[tokio::test]
async fn nobody_sees_or_changes_what_is_anothers() {
    let api = Api::new().await;
    let volume = api.volume("a").await;
    let snapshot = api
        .make("snapshots", "snapshot", json!({"volume_id": volume}))
        .await;
    let backup = api.make("backups", "backup", json!({"volume_id": volume})).await;
    let attachment = api
        .member(
            "POST",
            "/attachments",
            Some(json!({"attachment": {"volume_uuid": volume}})),
        )
        .await;
    let attachment = attachment.body["attachment"]["id"].as_str().unwrap().to_owned();
    let body = |key: &str| Some(json!({key: {}}));
    let tries = [
        ("GET", format!("/volumes/{volume}"), None),
        (
            "PUT",
            format!("/volumes/{volume}"),
            Some(json!({"volume": {"name": "x"}})),
        ),
        ("DELETE", format!("/volumes/{volume}"), None),
        ("GET", format!("/volumes/{volume}/metadata"), None),
        ("POST", format!("/volumes/{volume}/metadata"), body("metadata")),
        (
            "POST",
            format!("/volumes/{volume}/action"),
            Some(json!({"os-extend": {"new_size": 5}})),
        ),
        ("POST", format!("/volumes/{volume}/action"), body("os-reserve")),
        ("POST", format!("/volumes/{volume}/action"), body("os-detach")),
        (
            "POST",
            "/snapshots".into(),
            Some(json!({"snapshot": {"volume_id": volume}})),
        ),
        ("GET", format!("/snapshots/{snapshot}"), None),
        ("DELETE", format!("/snapshots/{snapshot}"), None),
        (
            "PUT",
            format!("/snapshots/{snapshot}"),
            Some(json!({"snapshot": {"name": "x"}})),
        ),
        (
            "POST",
            "/backups".into(),
            Some(json!({"backup": {"volume_id": volume}})),
        ),
        ("GET", format!("/backups/{backup}"), None),
        ("DELETE", format!("/backups/{backup}"), None),
        ("POST", format!("/backups/{backup}/restore"), body("restore")),
        ("GET", format!("/attachments/{attachment}"), None),
        ("DELETE", format!("/attachments/{attachment}"), None),
        (
            "POST",
            "/attachments".into(),
            Some(json!({"attachment": {"volume_uuid": volume}})),
        ),
        (
            "POST",
            "/os-volume-transfer".into(),
            Some(json!({"transfer": {"volume_id": volume}})),
        ),
        (
            "POST",
            "/volumes".into(),
            Some(json!({"volume": {"source_volid": volume}})),
        ),
        (
            "POST",
            "/volumes".into(),
            Some(json!({"volume": {"snapshot_id": snapshot}})),
        ),
        (
            "POST",
            "/volumes".into(),
            Some(json!({"volume": {"backup_id": backup}})),
        ),
    ];
    for (method, path, body) in tries {
        let path = format!("/v3{path}");
        let reply = api.ask(&api.stranger, "3.71", method, &path, body.clone()).await;
        assert_eq!(reply.status, 404, "{method} {path}: {}", reply.body);
        if method != "GET" {
            let reply = api.ask(&api.reader, "3.71", method, &path, body).await;
            assert_eq!(reply.status, 403, "a reader: {method} {path}: {}", reply.body);
        }
    }
    for path in ["volumes", "snapshots", "backups", "attachments"] {
        let listed = api
            .ask(
                &api.stranger,
                "3.71",
                "GET",
                &format!("/v3/{path}?all_tenants=1"),
                None,
            )
            .await;
        assert_eq!(listed.body[path], json!([]), "{path}");
    }
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_cut() {
    let api = Api::new().await;
    for name in ["c", "a", "b"] {
        api.volume(name).await;
    }
    let names = |reply: &Reply| -> Vec<String> {
        let volumes = reply.body["volumes"].as_array().unwrap();
        volumes
            .iter()
            .map(|v| v["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let get = |query: &str| {
        let path = format!("/volumes/detail?{query}");
        let api = &api;
        async move { api.member("GET", &path, None).await }
    };
    assert_eq!(names(&get("").await), ["b", "a", "c"], "newest first");
    assert_eq!(names(&get("sort=name:asc").await), ["a", "b", "c"]);
    assert_eq!(names(&get("sort_key=name&sort_dir=desc").await), ["c", "b", "a"]);
    assert_eq!(names(&get("name=a").await), ["a"]);
    assert_eq!(names(&get("status=available&size=1").await).len(), 3);
    assert!(names(&get("status=no-such-status").await).is_empty());
    assert_eq!(names(&get("limit=0").await).len(), 0);
    let first = get("sort=name:asc&limit=2&with_count=true").await;
    assert_eq!(
        (names(&first), &first.body["count"]),
        (vec!["a".to_owned(), "b".to_owned()], &json!(3))
    );
    let next = first.body["volumes_links"][0]["href"].as_str().unwrap();
    let query = next.split_once('?').unwrap().1.to_owned();
    assert_eq!(names(&get(&query).await), ["c"]);
    for bad in [
        "limit=-1",
        "limit=x",
        "sort=nonsense",
        "sort_dir=sideways",
        "offset=-1",
        "no_such_filter=1",
    ] {
        assert_eq!(get(bad).await.status, 400, "{bad}");
    }
    assert_eq!(get("marker=unknown").await.status, 404);
}

#[tokio::test]
async fn quotas_are_over_limit() {
    let api = Api::new().await;
    let ctx = api.test.cloud.identity.validate(&api.member).unwrap();
    let path = format!("/os-quota-sets/{}", ctx.project().unwrap());
    let body = json!({"quota_set": {"volumes": 1, "gigabytes": 2}});
    assert_eq!(api.admin("PUT", &path, Some(body)).await.status, 200);
    assert_eq!(
        api.member("PUT", &path, Some(json!({"quota_set": {"volumes": 9}})))
            .await
            .status,
        403
    );
    let id = api.volume("a").await;
    let second = api
        .member("POST", "/volumes", Some(json!({"volume": {"size": 1}})))
        .await;
    assert_eq!(second.status, 413);
    assert_eq!(second.body["overLimit"]["code"], 413);
    let grown = json!({"os-extend": {"new_size": 3}});
    assert_eq!(
        api.member("POST", &format!("/volumes/{id}/action"), Some(grown))
            .await
            .status,
        413
    );
    let shown = api.member("GET", &format!("{path}?usage=true"), None).await.body;
    assert_eq!(
        shown["quota_set"]["volumes"],
        json!({"limit": 1, "in_use": 1, "reserved": 0})
    );
    let limits = api.member("GET", "/limits", None).await.body;
    assert_eq!(limits["limits"]["absolute"]["totalGigabytesUsed"], 1);
    let wrong = json!({"quota_set": {"no_such_thing": 1}});
    assert_eq!(api.admin("PUT", &path, Some(wrong)).await.status, 400);
    assert_eq!(api.admin("DELETE", &path, None).await.status, 200);
}

#[tokio::test]
async fn a_volume_is_handed_over_to_who_has_the_key() {
    let api = Api::new().await;
    let id = api.volume("a").await;
    let body = json!({"transfer": {"volume_id": id, "name": "t"}});
    let made = api.member("POST", "/volume-transfers", Some(body)).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let transfer = &made.body["transfer"];
    let path = format!("/v3/volume-transfers/{}/accept", transfer["id"].as_str().unwrap());
    let accept = |key: Value| {
        let (api, path) = (&api, &path);
        async move {
            let body = json!({"accept": {"auth_key": key}});
            api.ask(&api.stranger, "3.71", "POST", path, Some(body)).await
        }
    };
    assert_eq!(accept(json!("wrong")).await.status, 400);
    assert_eq!(accept(transfer["auth_key"].clone()).await.status, 202);
    assert_eq!(
        api.member("GET", &format!("/volumes/{id}"), None).await.status,
        404
    );
    let theirs = api
        .ask(&api.stranger, "3.71", "GET", &format!("/v3/volumes/{id}"), None)
        .await;
    assert_eq!(theirs.body["volume"]["status"], "available");
    assert_eq!(accept(transfer["auth_key"].clone()).await.status, 404, "once");
}

#[tokio::test]
async fn a_type_may_ask_for_encryption() {
    let api = Api::new().await;
    let made = api
        .admin("POST", "/types", Some(json!({"volume_type": {"name": "sealed"}})))
        .await;
    let kind = made.body["volume_type"]["id"].as_str().unwrap().to_owned();
    let path = format!("/types/{kind}/encryption");
    assert_eq!(api.admin("GET", &path, None).await.body, json!({}));
    let words = json!({"encryption": {
        "provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end",
    }});
    assert_eq!(api.member("POST", &path, Some(words.clone())).await.status, 403);
    for wrong in [
        json!({"encryption": {"cipher": "aes"}}),
        json!({"encryption": {"provider": "luks", "control_location": "nowhere"}}),
        json!({"encryption": {"provider": "luks", "key_size": -1}}),
        json!({"encryption": {"provider": "luks", "more": 1}}),
    ] {
        assert_eq!(
            api.admin("POST", &path, Some(wrong.clone())).await.status,
            400,
            "{wrong}"
        );
    }
    let made = api.admin("POST", &path, Some(words.clone())).await;
    assert_eq!(made.status, 200);
    let id = made.body["encryption"]["encryption_id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(api.admin("POST", &path, Some(words)).await.status, 400, "again");
    let shown = api.admin("GET", &path, None).await.body;
    assert_eq!(
        (&shown["provider"], &shown["key_size"]),
        (&json!("luks"), &json!(256))
    );
    let one = format!("{path}/{id}");
    let change = json!({"encryption": {"key_size": 512, "provider": "other"}});
    assert_eq!(api.admin("PUT", &one, Some(change.clone())).await.status, 200);
    let item = api.admin("GET", &format!("{path}/key_size"), None).await.body;
    assert_eq!(item, json!({"key_size": 512}));
    assert_eq!(
        api.admin("GET", &format!("{path}/nothing"), None).await.status,
        404
    );
    // What its volumes were made as, it goes on to say.
    let body = json!({"volume": {"size": 1, "volume_type": kind}});
    let made = api.member("POST", "/volumes", Some(body)).await.body;
    let volume = made["volume"]["id"].as_str().unwrap().to_owned();
    assert_eq!(api.admin("PUT", &one, Some(change)).await.status, 400);
    assert_eq!(api.admin("DELETE", &one, None).await.status, 400);
    api.until("volumes", "volume", &volume, "available").await;
    let volume = format!("/volumes/{volume}");
    assert_eq!(
        api.member("GET", &volume, None).await.body["volume"]["encrypted"],
        true
    );
    let said = api
        .member("GET", &format!("{volume}/encryption"), None)
        .await
        .body;
    assert_eq!(said["cipher"], "aes-xts-plain64");
    assert_eq!(api.member("DELETE", &volume, None).await.status, 202);
    api.gone(&volume).await;
    assert_eq!(api.admin("DELETE", &one, None).await.status, 202);
    assert_eq!(api.admin("GET", &path, None).await.body, json!({}));
    assert_eq!(api.admin("DELETE", &one, None).await.status, 404);
}

#[tokio::test]
async fn types_that_no_pool_is_leave_a_message() {
    let api = Api::new().await;
    let body = json!({"volume_type": {"name": "gold", "extra_specs": {"volume_backend_name": "elsewhere"}}});
    assert_eq!(api.member("POST", "/types", Some(body.clone())).await.status, 403);
    assert_eq!(api.admin("POST", "/types", Some(body.clone())).await.status, 200);
    assert_eq!(api.admin("POST", "/types", Some(body)).await.status, 409);
    let volume = json!({"volume": {"size": 1, "volume_type": "gold"}});
    let mut events = api.test.cloud.store.subscribe();
    let made = api.member("POST", "/volumes", Some(volume)).await;
    let path = format!("/volumes/{}", made.body["volume"]["id"].as_str().unwrap());
    while api.member("GET", &path, None).await.body["volume"]["status"] != "error" {
        events.recv().await.unwrap();
    }
    let messages = api.member("GET", "/messages", None).await.body;
    assert_eq!(messages["messages"][0]["event_id"], "VOLUME_VOLUME_001_003");
    let shared = json!({"volume": {"size": 1, "multiattach": true}});
    assert_eq!(api.member("POST", "/volumes", Some(shared)).await.status, 400);
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(json!("5f1c2a70-5d0f-4d0e-9b57-a110d0000001")),
    ];
    let key = prop_oneof![
        Just("volume"),
        Just("snapshot"),
        Just("backup"),
        Just("restore"),
        Just("attachment"),
        Just("transfer"),
        Just("name"),
        Just("size"),
        Just("metadata"),
        Just("volume_id"),
        Just("volume_uuid"),
        Just("os-extend"),
        Just("new_size"),
        Just("volume_type"),
        Just("extra_specs"),
        Just("qos_specs"),
        Just("quota_set"),
        Just("volumes"),
        Just("connector"),
        Just("keys"),
        Just("imageRef"),
        Just("default_type"),
        Just("meta"),
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| json!(map)),
        ]
    })
}

#[test]
fn no_body_is_answered_with_a_server_error() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (api, volume) = runtime.block_on(async {
        let api = Api::new().await;
        let volume = api.volume("a").await;
        (api, volume)
    });
    let paths = [
        ("POST", "/volumes".to_owned()),
        ("PUT", format!("/volumes/{volume}")),
        ("POST", format!("/volumes/{volume}/action")),
        ("PUT", format!("/volumes/{volume}/metadata")),
        ("PUT", format!("/volumes/{volume}/metadata/k")),
        ("POST", "/snapshots".to_owned()),
        ("POST", "/backups".to_owned()),
        ("POST", "/attachments".to_owned()),
        ("POST", "/os-volume-transfer".to_owned()),
        ("POST", "/types".to_owned()),
        ("POST", "/qos-specs".to_owned()),
        ("PUT", "/os-quota-sets/p".to_owned()),
        ("PUT", "/os-quota-class-sets/default".to_owned()),
        ("PUT", "/os-services/disable".to_owned()),
        ("PUT", "/default-types/p".to_owned()),
        ("POST", "/backups/import_record".to_owned()),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        ..ProptestConfig::default()
    });
    let case = (0..paths.len(), anything());
    runner
        .run(&case, |(at, body)| {
            let (method, path) = &paths[at];
            let reply = runtime.block_on(api.admin(method, path, Some(body)));
            prop_assert!(reply.status.as_u16() < 500, "{method} {path}: {}", reply.body);
            Ok(())
        })
        .unwrap();
}

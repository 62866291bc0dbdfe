//! Barbican's API as clients see it: requests go through the whole edge, rules and store.

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use cloud::testing::TestCloud;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::AppState;

struct Api {
    test: TestCloud,
    router: axum::Router,
    token: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }
}

impl Api {
    async fn new(role: &str) -> Self {
        let test = cloud::testing::cloud().await;
        let router = crate::router(AppState::new(test.cloud.clone()));
        let token = test.token("someone", "theirs", role).await;
        Api { test, router, token }
    }

    async fn with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/key-manager{path}"))
            .header("x-auth-token", &self.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .router
            .clone()
            .oneshot(request.body(body.into()).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            bytes: body.collect().await.unwrap().to_bytes().to_vec(),
        }
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let headers = [
            ("content-type", "application/json"),
            ("openstack-api-version", "key-manager 1.1"),
        ];
        let answer = self.with(method, path, &headers, body.to_string()).await;
        (answer.status.as_u16(), answer.json())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The path of a new secret.
    async fn secret(&self, body: Value) -> String {
        let (status, answer) = self.send("POST", "/v1/secrets", body).await;
        assert_eq!(status, 201, "{answer}");
        path_of(&answer["secret_ref"])
    }
}

fn path_of(reference: &Value) -> String {
    reference
        .as_str()
        .unwrap()
        .split_once("/key-manager")
        .unwrap()
        .1
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_told_and_chosen() {
    let api = Api::new("member").await;
    let answer = api.with("GET", "/", &[], "").await;
    assert_eq!(answer.status, 300);
    assert_eq!(answer.json()["versions"][0]["max_version"], "1.1");
    let header = |text| [("openstack-api-version", text)];
    let old = api.with("GET", "/v1/secrets", &[], "").await;
    assert_eq!(old.headers["openstack-api-version"], "key-manager 1.0");
    let new = api
        .with("GET", "/v1/secrets", &header("key-manager 1.1"), "")
        .await;
    assert_eq!(new.headers["openstack-api-version"], "key-manager 1.1");
    let none = api
        .with("GET", "/v1/secrets", &header("key-manager 1.9"), "")
        .await;
    assert_eq!(none.status, 406);
    assert_eq!(none.json()["code"], 406);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_from_its_beginning_to_its_end() {
    let api = Api::new("member").await;
    let path = api
        .secret(json!({"name": "n", "payload": "foo", "payload_content_type": "text/plain", "secret_type": "opaque"}))
        .await;
    let view = api.get(&path).await;
    assert_eq!(view["content_types"], json!({"default": "text/plain"}));
    assert_eq!(
        (&view["name"], &view["status"], &view["consumers"]),
        (&json!("n"), &json!("ACTIVE"), &json!([]))
    );
    assert!(view.get("payload").is_none());
    for (where_, accept) in [
        ("/payload", "text/plain"),
        ("/payload", "*/*"),
        ("", "text/plain"),
    ] {
        let payload = api
            .with("GET", &format!("{path}{where_}"), &[("accept", accept)], "")
            .await;
        assert_eq!(
            (payload.status.as_u16(), payload.bytes.as_slice()),
            (200, &b"foo"[..])
        );
        assert_eq!(payload.headers["cache-control"], "no-store");
    }
    let octets = [("accept", "application/octet-stream")];
    let same = api.with("GET", &format!("{path}/payload"), &octets, "").await;
    assert_eq!(same.headers["content-type"], "application/octet-stream");
    let other = api
        .with("GET", &format!("{path}/payload"), &[("accept", "image/png")], "")
        .await;
    assert_eq!(other.status, 406);
    let again = api
        .with("PUT", &path, &[("content-type", "text/plain")], "bar")
        .await;
    assert_eq!(again.status, 409);
    let list = api.get("/v1/secrets?name=n").await;
    assert_eq!(
        (&list["total"], &list["secrets"][0]["secret_ref"]),
        (&json!(1), &view["secret_ref"])
    );
    assert_eq!(api.get("/v1/secrets?name=m").await["total"], 0);
    assert_eq!(api.send("DELETE", &path, Value::Null).await.0, 204);
    let (status, gone) = api.send("GET", &path, Value::Null).await;
    assert_eq!((status, &gone["title"]), (404, &json!("Not Found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_in_two_steps() {
    let api = Api::new("member").await;
    let path = api.secret(json!({"bit_length": 128, "algorithm": "aes"})).await;
    let none = api.with("GET", &format!("{path}/payload"), &[], "").await;
    assert_eq!(none.status, 404);
    let put = |kind: &'static str, body: &'static str| {
        let headers = [("content-type", kind), ("content-encoding", "base64")];
        let (api, path) = (&api, path.clone());
        async move { api.with("PUT", &path, &headers, body).await.status.as_u16() }
    };
    assert_eq!(put("application/json", "{}").await, 415);
    assert_eq!(put("application/octet-stream", "***").await, 400);
    assert_eq!(put("application/octet-stream", "").await, 400);
    assert_eq!(put("application/octet-stream", "AAH/\n").await, 204);
    let accept = [("accept", "application/octet-stream")];
    let payload = api.with("GET", &format!("{path}/payload"), &accept, "").await;
    assert_eq!(payload.bytes, [0, 1, 255]);
    let text = api
        .with("GET", &format!("{path}/payload"), &[("accept", "text/plain")], "")
        .await;
    assert_eq!(text.status, 406, "it is no text");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_a_400() {
    let api = Api::new("member").await;
    for body in [
        json!({"payload": "x"}),
        json!({"payload_content_type": "text/plain"}),
        json!({"payload": "", "payload_content_type": "text/plain"}),
        json!({"payload": "x", "payload_content_type": "text/html"}),
        json!({"payload": "x", "payload_content_type": "text/plain", "payload_content_encoding": "base64"}),
        json!({"payload": "x", "payload_content_type": "application/octet-stream"}),
        json!({"payload": "*", "payload_content_type": "application/octet-stream",
            "payload_content_encoding": "base64"}),
        json!({"secret_type": "love-letter"}),
        json!({"bit_length": 0}),
        json!({"bit_length": -1}),
        json!({"name": 7}),
        json!({"expiration": "2001-01-01T00:00:00"}),
        json!({"expiration": "soon"}),
    ] {
        let (status, answer) = api.send("POST", "/v1/secrets", body.clone()).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer["description"].is_string(), "{answer}");
    }
    let large = json!({"payload": "x".repeat(20_001), "payload_content_type": "text/plain"});
    assert_eq!(api.send("POST", "/v1/secrets", large).await.0, 413);
    for path in [
        "/v1/secrets?limit=x",
        "/v1/secrets?created=gt:never",
        "/v1/secrets?sort=love:asc",
    ] {
        assert_eq!(api.send("GET", path, Value::Null).await.0, 400, "{path}");
    }
    for path in [
        "/v1/secrets/no-id",
        "/v1/containers/no-id",
        "/v1/orders/no-id",
        "/v1/secret-stores",
    ] {
        assert_eq!(api.send("GET", path, Value::Null).await.0, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_lists_of_access_and_consumers() {
    let api = Api::new("member").await;
    let path = api.secret(json!({})).await;
    let meta = format!("{path}/metadata");
    let all = json!({"metadata": {"Color": "red"}});
    assert_eq!(api.send("PUT", &meta, all).await.0, 201);
    let one = json!({"key": "size", "value": "1"});
    assert_eq!(api.send("POST", &meta, one.clone()).await, (201, one.clone()));
    assert_eq!(api.send("POST", &meta, one.clone()).await.0, 409);
    assert_eq!(
        api.get(&meta).await["metadata"],
        json!({"color": "red", "size": "1"})
    );
    assert_eq!(api.get(&format!("{meta}/size")).await, one);
    assert_eq!(
        api.send("DELETE", &format!("{meta}/size"), Value::Null).await.0,
        204
    );
    assert_eq!(api.send("GET", &format!("{meta}/size"), Value::Null).await.0, 404);

    let acl = format!("{path}/acl");
    assert_eq!(api.get(&acl).await, json!({"read": {"project-access": true}}));
    let change = json!({"read": {"users": ["u"], "project-access": false}});
    assert_eq!(api.send("PUT", &acl, change).await.0, 200);
    assert_eq!(api.get(&acl).await["read"]["users"], json!(["u"]));
    assert_eq!(api.send("PUT", &acl, json!({"write": {}})).await.0, 400);
    assert_eq!(api.send("DELETE", &acl, Value::Null).await.0, 200);

    let consumers = format!("{path}/consumers");
    let body = json!({"service": "glance", "resource_type": "image", "resource_id": "i"});
    let (status, view) = api.send("POST", &consumers, body.clone()).await;
    assert_eq!((status, &view["consumers"]), (200, &json!([body])));
    assert_eq!(api.get(&consumers).await["total"], 1);
    let old = api.with("GET", &consumers, &[], "").await;
    assert_eq!(old.status, 404, "1.0 knows no consumers of secrets");
    assert_eq!(api.send("DELETE", &consumers, body).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_orders_and_quotas() {
    let api = Api::new("admin").await;
    let body =
        json!({"type": "key", "meta": {"name": "k", "algorithm": "aes", "bit_length": 256, "mode": "cbc"}});
    let (status, answer) = api.send("POST", "/v1/orders", body).await;
    assert_eq!(status, 202);
    let order = api.get(&path_of(&answer["order_ref"])).await;
    assert_eq!(
        (&order["status"], &order["meta"]["name"]),
        (&json!("ACTIVE"), &json!("k"))
    );
    let accept = [("accept", "application/octet-stream")];
    let key = api
        .with(
            "GET",
            &format!("{}/payload", path_of(&order["secret_ref"])),
            &accept,
            "",
        )
        .await;
    assert_eq!(key.bytes.len(), 32);
    let body = json!({"type": "asymmetric", "meta": {"algorithm": "rsa", "bit_length": 2048}});
    assert_eq!(api.send("POST", "/v1/orders", body).await.0, 400);

    let refs = json!([{"name": "k", "secret_ref": order["secret_ref"]}]);
    let body = json!({"type": "generic", "name": "c", "secret_refs": refs});
    let (status, answer) = api.send("POST", "/v1/containers", body).await;
    assert_eq!(status, 201);
    let path = path_of(&answer["container_ref"]);
    let consumer = json!({"name": "lb", "URL": "https://lb"});
    let (status, view) = api
        .send("POST", &format!("{path}/consumers"), consumer.clone())
        .await;
    assert_eq!(
        (status, &view["secret_refs"], &view["consumers"]),
        (200, &refs, &json!([consumer]))
    );
    assert_eq!(api.get("/v1/containers").await["total"], 1);
    assert_eq!(api.send("DELETE", &path, Value::Null).await.0, 204);

    let project = api
        .test
        .context("someone", "theirs", "admin")
        .await
        .project()
        .unwrap()
        .to_owned();
    let own = format!("/v1/project-quotas/{project}");
    assert_eq!(api.send("GET", &own, Value::Null).await.0, 404);
    let limits = json!({"project_quotas": {"secrets": 1}});
    assert_eq!(api.send("PUT", &own, limits).await.0, 204);
    assert_eq!(api.get("/v1/quotas").await["quotas"]["secrets"], 1);
    let (status, full) = api.send("POST", "/v1/secrets", json!({})).await;
    assert_eq!(status, 403, "{full}");
    assert_eq!(api.get("/v1/project-quotas").await["total"], 1);
    assert_eq!(api.send("DELETE", &own, Value::Null).await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_come_in_parts() {
    let api = Api::new("member").await;
    for name in ["a", "b", "c"] {
        api.secret(json!({"name": name})).await;
    }
    let mut path = "/v1/secrets?limit=2&sort=name:desc".to_owned();
    let mut seen = Vec::new();
    loop {
        let part = api.get(&path).await;
        assert_eq!(part["total"], 3);
        for secret in part["secrets"].as_array().unwrap() {
            seen.push(secret["name"].as_str().unwrap().to_owned());
        }
        match part.get("next") {
            Some(next) => path = path_of(next),
            None => break,
        }
    }
    assert_eq!(seen, ["c", "b", "a"]);
}

/// No body, however wrong, is answered with a 5xx.
#[test]
fn hostile_bodies_are_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let api = runtime.block_on(Api::new("admin"));
    let path = runtime.block_on(api.secret(json!({})));
    let paths = [
        ("POST", "/v1/secrets".to_owned()),
        ("PUT", path.clone()),
        ("PUT", format!("{path}/metadata")),
        ("POST", format!("{path}/metadata")),
        ("PUT", format!("{path}/acl")),
        ("POST", format!("{path}/consumers")),
        ("POST", "/v1/containers".to_owned()),
        ("POST", "/v1/orders".to_owned()),
        ("PUT", "/v1/project-quotas/p".to_owned()),
    ];
    let value = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({"users": 7})),
    ];
    let keys = prop_oneof![
        Just("name"),
        Just("type"),
        Just("meta"),
        Just("read"),
        Just("payload"),
        Just("metadata"),
        Just("expiration"),
        Just("bit_length"),
        Just("secret_refs"),
        Just("project_quotas"),
        Just("payload_content_type"),
    ];
    let bodies = proptest::collection::btree_map(keys, value, 0..6);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
    runner
        .run(&bodies, |body| {
            let body = json!(body);
            for (method, path) in &paths {
                let (status, answer) = runtime.block_on(api.send(method, path, body.clone()));
                prop_assert!(
                    status < 500,
                    "{} {} {}: {} {}",
                    method,
                    path,
                    body,
                    status,
                    answer
                );
            }
            Ok(())
        })
        .unwrap();
}

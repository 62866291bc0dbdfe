//! The whole router, asked as over HTTP.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use cloud::testing::{ADMIN_PASSWORD, TestCloud, cloud};
use http_body_util::BodyExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{AppState, router};

mod images;
mod strangers;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }
}

#[derive(Clone)]
struct Client {
    router: Router,
    token: Option<String>,
}

impl Client {
    async fn admin(test: &TestCloud) -> Client {
        Client {
            token: Some(test.admin_token().await),
            ..Client::nobody(test)
        }
    }

    fn nobody(test: &TestCloud) -> Client {
        Client {
            router: router(AppState::new(test.cloud.clone())),
            token: None,
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = &self.token {
            request = request.header("x-auth-token", token);
        }
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
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Answer {
            status: parts.status,
            headers: parts.headers,
            bytes,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Body::empty()).await
    }

    async fn json(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.send(
            method,
            path,
            &[("content-type", "application/json")],
            body.to_string(),
        )
        .await
    }
}

#[tokio::test]
async fn every_service_words_its_own_404_405_and_401() {
    let test = cloud().await;
    let (client, nobody) = (Client::admin(&test).await, Client::nobody(&test));
    let shape = |service: &str, body: &Value| match service {
        "compute" => body
            .as_object()
            .and_then(|o| o.values().next())
            .is_some_and(|v| v["code"].is_u64()),
        "network" => body["NeutronError"]["type"].is_string(),
        "image" => body["title"].is_string(),
        _ => body["error"]["code"].is_u64(),
    };
    for service in ["identity", "image", "compute", "network"] {
        let missing = client.get(&format!("/{service}/no/such/thing")).await;
        assert_eq!(missing.status, 404, "{service}");
        assert!(shape(service, &missing.json()), "{service}: {}", missing.json());
        assert!(
            missing.headers["x-openstack-request-id"]
                .to_str()
                .unwrap()
                .starts_with("req-")
        );
        assert_eq!(
            missing.headers.contains_key("x-compute-request-id"),
            service == "compute"
        );
    }
    let wrong = client
        .send(Method::DELETE, "/image/v2/images", &[], Body::empty())
        .await;
    assert_eq!(wrong.status, 405);
    assert_eq!(wrong.headers["allow"], "GET,HEAD,POST");
    assert!(shape("image", &wrong.json()));
    for (service, path) in [("identity", "/identity/v3/users"), ("image", "/image/v2/images")] {
        let answer = nobody.get(path).await;
        assert_eq!(answer.status, 401, "{path}");
        assert!(shape(service, &answer.json()), "{path}");
        assert!(
            answer.headers["www-authenticate"]
                .to_str()
                .unwrap()
                .contains("Keystone")
        );
    }
    assert_eq!(
        client.get("/image/v2/images/%ff").await.status,
        400,
        "a path that is not UTF-8"
    );
}

#[tokio::test]
async fn discovery_needs_no_token() {
    let test = cloud().await;
    let client = Client::nobody(&test);
    assert_eq!(client.get("/").await.json()["name"], "allod");
    assert_eq!(client.get("/healthz").await.status, 200);
    assert_eq!(client.get("/identity").await.status, 300);
    assert_eq!(client.get("/identity/").await.status, 300);
    let v3 = client.get("/identity/v3/").await.json();
    assert_eq!(v3["version"]["id"], "v3.14");
    assert!(
        v3["version"]["links"][0]["href"]
            .as_str()
            .unwrap()
            .starts_with(&test.cloud.config.public_url)
    );
    assert_eq!(client.get("/image").await.status, 300);
    assert_eq!(
        client.get("/image/versions").await.json()["versions"][0]["status"],
        "CURRENT"
    );
}

#[tokio::test]
async fn metrics_count_requests_and_token_checks() {
    let test = cloud().await;
    let mut client = Client::admin(&test).await;
    client.get("/image/v2/images").await;
    client.token = Some("nonsense".into());
    client.get("/image/v2/images").await;
    let text = String::from_utf8(client.get("/metrics").await.bytes).unwrap();
    assert!(
        text.contains(r#"allod_api_requests_total{service="image",method="GET",status="200"} 1"#),
        "{text}"
    );
    assert!(
        text.contains(r#"allod_api_requests_total{service="image",method="GET",status="401"} 1"#),
        "{text}"
    );
    assert!(
        text.contains(r#"allod_token_validations_total{result="invalid"} 1"#),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_token_tells_roles_project_and_catalog_and_ends_when_it_is_deleted() {
    let test = cloud().await;
    let mut client = Client::nobody(&test);
    let user = json!({"name": "admin", "domain": {"id": "default"}, "password": ADMIN_PASSWORD});
    let scope = json!({"project": {"name": "admin", "domain": {"name": "Default"}}});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let login = json!({"auth": {"identity": identity, "scope": scope}});
    let answer = client
        .json(Method::POST, "/identity/v3/auth/tokens", &login)
        .await;
    assert_eq!(answer.status, 201);
    let token = answer.headers["x-subject-token"].to_str().unwrap().to_owned();
    assert!(token.len() < 255);
    let body = answer.json()["token"].clone();
    assert_eq!(body["project"]["name"], "admin");
    assert_eq!(body["roles"].as_array().unwrap().len(), 4);
    assert_eq!(body["methods"], json!(["password"]));
    let types: Vec<&str> = body["catalog"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|s| s["type"].as_str())
        .collect();
    let served: Vec<&str> = cloud::identity::catalog::SERVED
        .iter()
        .map(|service| service.kind)
        .collect();
    assert_eq!(types, served);
    assert!(types.contains(&"key-manager"));
    assert!(body["expires_at"].as_str().unwrap().ends_with("000000Z"));

    client.token = Some(token.clone());
    let subject = [("x-subject-token", token.as_str())];
    let path = "/identity/v3/auth/tokens";
    let seen = client
        .send(Method::GET, &format!("{path}?nocatalog"), &subject, Body::empty())
        .await;
    assert_eq!(seen.status, 200);
    assert!(seen.json()["token"]["catalog"].is_null());
    let head = client.send(Method::HEAD, path, &subject, Body::empty()).await;
    assert_eq!((head.status, head.bytes.len()), (StatusCode::OK, 0));
    assert_eq!(client.get(path).await.status, 400, "without a subject");
    let other = [("x-subject-token", "nonsense")];
    assert_eq!(
        client.send(Method::GET, path, &other, Body::empty()).await.status,
        404
    );
    assert_eq!(
        client
            .send(Method::DELETE, path, &subject, Body::empty())
            .await
            .status,
        204
    );
    assert_eq!(client.get("/identity/v3/users").await.status, 401);
}

#[tokio::test]
async fn collections_link_their_pages() {
    let test = cloud().await;
    let client = Client::admin(&test).await;
    for i in 0..5 {
        let body = json!({"project": {"name": format!("p{i}")}});
        assert_eq!(
            client
                .json(Method::POST, "/identity/v3/projects", &body)
                .await
                .status,
            201
        );
        let body = json!({"name": format!("i{i}")});
        assert_eq!(
            client.json(Method::POST, "/image/v2/images", &body).await.status,
            201
        );
    }
    let first = client
        .get("/identity/v3/projects?limit=2&name__startswith=p")
        .await
        .json();
    assert_eq!(first["projects"].as_array().unwrap().len(), 2);
    let next = first["links"]["next"]
        .as_str()
        .unwrap()
        .strip_prefix(&test.cloud.config.public_url)
        .unwrap();
    assert_eq!(client.get(next).await.json()["projects"][0]["name"], "p2");

    let (mut path, mut names) = ("/v2/images?limit=2&sort=name:asc".to_owned(), Vec::new());
    loop {
        let page = client.get(&format!("/image{path}")).await.json();
        names.extend(
            page["images"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["name"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => path = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, ["i0", "i1", "i2", "i3", "i4"]);
    assert_eq!(client.get("/image/v2/images?limit=x").await.status, 400);
    assert_eq!(client.get("/image/v2/images?marker=x").await.status, 400);
}

#[tokio::test]
async fn every_format_of_the_schema_is_taken_and_no_other() {
    let test = cloud().await;
    let client = Client::admin(&test).await;
    let schema = client.get("/image/v2/schemas/image").await.json();
    let formats = ["raw", "qcow2", "iso", "vmdk", "vhd", "vhdx"];
    let mut listed = vec![json!(null)];
    listed.extend(formats.map(|format| json!(format)));
    assert_eq!(schema["properties"]["disk_format"]["enum"], json!(listed));
    let octets = [("content-type", "application/octet-stream")];
    for format in formats {
        let body = json!({"name": format, "disk_format": format, "container_format": "bare"});
        let image = client.json(Method::POST, "/image/v2/images", &body).await.json();
        let this = format!("/image{}", image["self"].as_str().unwrap());
        let file = format!("{this}/file");
        let sent = client.send(Method::PUT, &file, &octets, vec![7; 2048]).await;
        assert_eq!(sent.status, 204, "{format}");
        let image = client.get(&this).await.json();
        assert_eq!(
            (&image["status"], &image["disk_format"], &image["virtual_size"]),
            (&json!("active"), &json!(format), &json!(2048))
        );
        assert_eq!(client.get(&file).await.bytes, vec![7; 2048], "{format}");
        let found = client
            .get(&format!("/image/v2/images?disk_format={format}"))
            .await
            .json();
        assert_eq!(found["images"].as_array().map(Vec::len), Some(1), "{format}");
    }
    for format in ["ploop", "vdi", "ami", "vpc", "VHD"] {
        let body = json!({"name": format, "disk_format": format, "container_format": "bare"});
        let refused = client.json(Method::POST, "/image/v2/images", &body).await;
        assert_eq!(refused.status, 400, "{format}");
    }
}

#[tokio::test]
async fn an_image_goes_in_and_comes_out() {
    let test = cloud().await;
    let client = Client::admin(&test).await;
    let body = json!({"name": "i", "disk_format": "qcow2", "container_format": "bare", "a.b": "c"});
    let created = client.json(Method::POST, "/image/v2/images", &body).await;
    assert_eq!(created.status, 201);
    let image = created.json();
    assert_eq!(
        (image["status"].as_str(), image["a.b"].as_str()),
        (Some("queued"), Some("c"))
    );
    assert!(
        created.headers["location"]
            .to_str()
            .unwrap()
            .ends_with(image["self"].as_str().unwrap())
    );
    let file = format!("/image{}", image["file"].as_str().unwrap());
    assert_eq!(client.get(&file).await.status, 204);
    let octets = [("content-type", "application/octet-stream")];
    // Larger than any JSON may be: image bytes have a limit of their own.
    let bytes: Vec<u8> = (0..3 * 1024 * 1024_u32).map(|i| (i / 7) as u8).collect();
    assert_eq!(client.json(Method::PUT, &file, &json!({})).await.status, 415);
    assert_eq!(
        client
            .send(Method::PUT, &file, &octets, bytes.clone())
            .await
            .status,
        204
    );
    assert_eq!(
        client
            .send(Method::PUT, &file, &octets, bytes.clone())
            .await
            .status,
        409
    );
    let out = client.get(&file).await;
    assert_eq!((out.status, out.bytes == bytes), (StatusCode::OK, true));
    assert!(out.headers.contains_key("content-md5"));
    let part = client
        .send(Method::GET, &file, &[("range", "bytes=1000-1009")], Body::empty())
        .await;
    assert_eq!(part.status, 206);
    assert_eq!(part.bytes, &bytes[1000..1010]);
    assert_eq!(
        part.headers["content-range"],
        format!("bytes 1000-1009/{}", bytes.len())
    );
    let beyond = client
        .send(Method::GET, &file, &[("range", "bytes=99999999-")], Body::empty())
        .await;
    assert_eq!(beyond.status, 416);

    let this = format!("/image{}", image["self"].as_str().unwrap());
    let patch = json!([{"op": "replace", "path": "/name", "value": "j"}]).to_string();
    let kind = [("content-type", "application/openstack-images-v2.1-json-patch")];
    assert_eq!(
        client
            .send(Method::PATCH, &this, &kind, patch.clone())
            .await
            .json()["name"],
        "j"
    );
    let wrong = [("content-type", "application/json")];
    assert_eq!(client.send(Method::PATCH, &this, &wrong, patch).await.status, 415);
    assert_eq!(
        client
            .send(Method::DELETE, &this, &[], Body::empty())
            .await
            .status,
        204
    );
    assert_eq!(client.get(&this).await.status, 404);
}

#[tokio::test]
async fn bodies_that_are_too_large_or_of_another_type_are_refused() {
    let test = cloud().await;
    let client = Client::admin(&test).await;
    let path = "/identity/v3/projects";
    let huge = json!({"project": {"name": "x".repeat(crate::body::MAX_JSON)}});
    assert_eq!(client.json(Method::POST, path, &huge).await.status, 413);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(
        client.send(Method::POST, path, &form, "project=x").await.status,
        415
    );
    assert_eq!(client.send(Method::POST, path, &[], "").await.status, 400);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(client.send(Method::POST, path, &[], deep).await.status, 400);
}

#[tokio::test]
async fn a_handler_that_panics_is_a_500_in_the_services_words() {
    let test = cloud().await;
    let state = AppState::new(test.cloud.clone());
    let panicking = Router::new().route(
        "/compute/boom",
        axum::routing::get(async || -> () { panic!("boom") }),
    );
    let client = Client {
        router: crate::edge::wrap(panicking, state),
        token: None,
    };
    let answer = client.get("/compute/boom").await;
    assert_eq!(answer.status, 500);
    assert!(answer.json()["computeFault"]["message"].is_string());
    assert!(
        !String::from_utf8_lossy(&answer.bytes).contains("boom"),
        "what went wrong is for the log alone"
    );
}

/// Any JSON value, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("\u{0}")),
        Just(json!("x".repeat(70_000))),
        Just(json!("default")),
        Just(json!(u64::MAX)),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec(("[a-z_]{1,10}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Bodies that are right; the test puts any value into any of their places.
fn templates() -> Vec<(Method, &'static str, Value)> {
    let named =
        json!({"name": "n", "domain_id": "default", "description": "d", "enabled": true, "options": {}});
    let user = json!({"name": "u", "domain": {"id": "default"}, "password": "p"});
    let proof = json!({"id": "x", "name": "x", "user": user, "secret": "s"});
    let identity = json!({"methods": ["password"], "password": {"user": user}, "token": {"id": "t"},
        "application_credential": proof});
    let scope = json!({"project": {"name": "p", "domain": {"name": "d"}}});
    let credential = json!({"name": "n", "secret": "s", "roles": [{"id": "x"}], "expires_at": "2099-01-01T00:00:00",
        "unrestricted": false, "access_rules": []});
    vec![
        (
            Method::POST,
            "/identity/v3/auth/tokens",
            json!({"auth": {"identity": identity, "scope": scope}}),
        ),
        (Method::POST, "/identity/v3/projects", json!({"project": named})),
        (Method::POST, "/identity/v3/domains", json!({"domain": named})),
        (Method::POST, "/identity/v3/users", json!({"user": named})),
        (Method::POST, "/identity/v3/groups", json!({"group": named})),
        (
            Method::POST,
            "/identity/v3/roles",
            json!({"role": {"name": "n", "description": "d"}}),
        ),
        (
            Method::PATCH,
            "/identity/v3/projects/{project}",
            json!({"project": {"name": "n", "tags": ["x"]}}),
        ),
        (
            Method::PUT,
            "/identity/v3/projects/{project}/tags",
            json!({"tags": ["x"]}),
        ),
        (
            Method::PATCH,
            "/identity/v3/users/{user}",
            json!({"user": {"description": "n", "email": "e"}}),
        ),
        (
            Method::POST,
            "/identity/v3/users/{user}/password",
            json!({"user": {"password": "n", "original_password": "o"}}),
        ),
        (
            Method::POST,
            "/identity/v3/users/{user}/application_credentials",
            json!({"application_credential": credential}),
        ),
        (
            Method::POST,
            "/image/v2/images",
            json!({"name": "n", "disk_format": "raw", "container_format": "bare", "tags": ["t"], "min_disk": 1,
                "min_ram": 1, "protected": false, "visibility": "private", "os_hidden": false, "x": "y"}),
        ),
        (
            Method::POST,
            "/image/v2/images/{image}/members",
            json!({"member": "m"}),
        ),
    ]
}

/// Puts `value` into the `place`th place of a document, counted as it is walked.
fn replace(document: &mut Value, place: &mut usize, value: &Value) -> bool {
    if *place == 0 {
        *document = value.clone();
        return true;
    }
    *place -= 1;
    match document {
        Value::Object(map) => map.values_mut().any(|inner| replace(inner, place, value)),
        Value::Array(list) => list.iter_mut().any(|inner| replace(inner, place, value)),
        _ => false,
    }
}

#[test]
fn no_body_makes_a_500() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let test = runtime.block_on(cloud());
    let client = runtime.block_on(Client::admin(&test));
    let ctx = runtime.block_on(test.context("fuzz", "fuzz", "admin"));
    let image = runtime
        .block_on(client.json(Method::POST, "/image/v2/images", &json!({})))
        .json();
    let path = |path: &str| {
        path.replace("{user}", &ctx.user_id)
            .replace("{project}", ctx.project().unwrap())
            .replace("{image}", image["id"].as_str().unwrap())
    };
    let templates = templates();
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    });
    let case = (0..templates.len(), 0_usize..14, any_json());
    let outcome = runner.run(&case, |(template, mut place, value)| {
        let (method, at, mut body) = templates[template].clone();
        replace(&mut body, &mut place, &value);
        let answer = runtime.block_on(client.json(method, &path(at), &body));
        prop_assert!(
            answer.status.as_u16() < 500 || answer.status == 503,
            "{} {at} {body}",
            answer.status
        );
        Ok(())
    });
    outcome.unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    });
    let case = (0..templates.len(), proptest::collection::vec(any::<u8>(), 0..200));
    let outcome = runner.run(&case, |(template, bytes)| {
        let (method, at, _) = templates[template].clone();
        let kind = [("content-type", "application/json")];
        let answer = runtime.block_on(client.send(method, &path(at), &kind, bytes));
        prop_assert!(answer.status.is_client_error(), "{} {at}", answer.status);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn no_query_makes_a_500() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let test = runtime.block_on(cloud());
    let client = runtime.block_on(Client::admin(&test));
    let paths = [
        "/identity/v3/users",
        "/identity/v3/projects",
        "/identity/v3/role_assignments",
        "/identity/v3/endpoints",
        "/image/v2/images",
    ];
    let keys = "(limit|marker|name|enabled|effective|include_names|scope.system|user.id|sort|sort_key|sort_dir|id|tag|\
        created_at|size_min|visibility|member_status|protected|os_hidden|disk_format|is_domain|tags)";
    let pair = (keys, "(in:|gt:|)[ -~]{0,12}").prop_map(|(key, value)| {
        form_urlencoded::Serializer::new(String::new())
            .append_pair(&key, &value)
            .finish()
    });
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    });
    let case = (0..paths.len(), proptest::collection::vec(pair, 0..4));
    let outcome = runner.run(&case, |(path, pairs)| {
        let path = format!("{}?{}", paths[path], pairs.join("&"));
        let answer = runtime.block_on(client.get(&path));
        prop_assert!(answer.status.as_u16() < 500, "{} {path}", answer.status);
        Ok(())
    });
    outcome.unwrap();
}

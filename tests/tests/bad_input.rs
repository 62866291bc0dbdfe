//! Bad input and bad luck: what people get to read, and what never happens (a 500, a hang).

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::Duration;

use allod_tests::cloud::{Cloud, Options};
use allod_tests::http::{Answer, Client};
use allod_tests::run::output;
use serde_json::json;

/// Runs the daemon with this configuration until it gives up.
fn serve(cloud: &Cloud, configuration: &str) -> Output {
    let file = cloud.folder().join("other.toml");
    fs::write(&file, configuration).unwrap();
    let mut command = cloud.command("timeout");
    command
        .arg("20")
        .arg(&cloud.options().program)
        .arg("serve")
        .arg("--config")
        .arg(file);
    output(&mut command).unwrap()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it was accepted");
    assert_ne!(output.status.code(), Some(124), "it serves");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_configuration_is_named_with_its_line() {
    let cloud = Cloud::prepare(Options::default()).unwrap();
    let said = complaint(&serve(
        &cloud,
        "[server]\nlisten = \"127.0.0.1:1\"\n\n[compute]\nengin = \"qemu\"\n",
    ));
    assert!(said.contains("engin") && said.contains("line 5"), "{said}");
    let said = complaint(&serve(&cloud, "[network]\nexternal_cidr = \"not a range\"\n"));
    assert!(
        said.contains("external_cidr") && said.contains("line 2"),
        "{said}"
    );
    let said = complaint(&serve(&cloud, "[server\n"));
    assert!(said.contains("line 1"), "{said}");
    let missing = cloud.folder().join("absent.toml");
    let mut command = cloud.command(&cloud.options().program);
    let said = complaint(&output(command.arg("serve").arg("--config").arg(&missing)).unwrap());
    assert!(said.contains("absent.toml"), "{said}");
}

#[test]
fn a_port_in_use_says_what_to_do() {
    let cloud = Cloud::prepare(Options::default()).unwrap();
    let listen = cloud.listen();
    // Held open for as long as the namespace's thread gave it to us.
    let _held = cloud.enter(|| Ok(TcpListener::bind(listen)?)).unwrap();
    let configuration = fs::read_to_string(cloud.config()).unwrap();
    let said = complaint(&serve(&cloud, &configuration));
    assert!(said.contains("8443") && said.contains("listen"), "{said}");
}

/// A fault of OpenStack's: one key that names it, with code and message.
fn fault(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", String::from_utf8_lossy(&answer.body));
    let body = answer.json().unwrap();
    let text = body.to_string();
    assert!(text.contains("message"), "{text}");
}

fn token(client: &mut Client, password: &str) -> String {
    let body = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": "admin", "domain": {"id": "default"}, "password": password}}},
        "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
    }});
    let answer = client
        .request("POST", "/identity/v3/auth/tokens", Some(&body))
        .unwrap()
        .expect(201)
        .unwrap();
    answer.header("x-subject-token").unwrap().to_owned()
}

#[test]
fn bad_requests_are_faults_and_never_500() {
    let cloud = Cloud::start(Options::default()).unwrap();
    let mut client = cloud.client().unwrap();

    // Without a token.
    for path in [
        "/compute/v2.1/servers",
        "/network/v2.0/networks",
        "/image/v2/images",
        "/identity/v3/projects",
    ] {
        assert_eq!(client.request("GET", path, None).unwrap().status, 401, "{path}");
    }
    let made_up = [("X-Auth-Token", "gAAAAABmade-up")];
    assert_eq!(
        client
            .send("GET", "/compute/v2.1/servers", &made_up, None)
            .unwrap()
            .status,
        401
    );

    let token = token(&mut client, &cloud.admin_password().unwrap());
    client.set_token(&token);
    let creations = [
        "/compute/v2.1/servers",
        "/compute/v2.1/flavors",
        "/compute/v2.1/os-keypairs",
        "/network/v2.0/networks",
        "/network/v2.0/subnets",
        "/network/v2.0/routers",
        "/network/v2.0/security-group-rules",
        "/image/v2/images",
        "/identity/v3/projects",
        "/identity/v3/users",
        "/identity/v3/auth/tokens",
    ];
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    for path in creations {
        for body in [
            "",
            "{",
            "[]",
            "null",
            "\"text\"",
            "{\"a\": }",
            "{\"server\": 7}",
            "\u{fffd}",
            deep.as_str(),
        ] {
            let answer = client
                .send("POST", path, &[], Some(("application/json", body.as_bytes())))
                .unwrap();
            let shown = &body[..body.len().min(20)];
            assert!(
                (400..500).contains(&answer.status),
                "POST {path} {shown}: {}",
                answer.status
            );
        }
        let answer = client
            .send(
                "POST",
                path,
                &[],
                Some(("application/json", b"{\"name\": \"\xff\xfe\"}")),
            )
            .unwrap();
        assert!(
            (400..500).contains(&answer.status),
            "POST {path} without UTF-8: {}",
            answer.status
        );
    }
    let body =
        json!({"server": {"name": "x", "flavorRef": "no-such", "imageRef": "no-such", "networks": "auto"}});
    let answer = client
        .request("POST", "/compute/v2.1/servers", Some(&body))
        .unwrap();
    fault(&answer, 400);
    let answer = client
        .request(
            "POST",
            "/network/v2.0/subnets",
            Some(&json!({"subnet": {"cidr": "10.0.0.0/99"}})),
        )
        .unwrap();
    fault(&answer, 400);

    // What is not there.
    let nobody = "00000000-0000-4000-8000-000000000000";
    for path in [
        "/compute/v2.1/servers",
        "/network/v2.0/networks",
        "/image/v2/images",
        "/identity/v3/projects",
    ] {
        let answer = client.request("GET", &format!("{path}/{nobody}"), None).unwrap();
        assert_eq!(answer.status, 404, "{path}");
    }
    fault(
        &client
            .request("GET", &format!("/compute/v2.1/servers/{nobody}"), None)
            .unwrap(),
        404,
    );
    assert_eq!(client.request("GET", "/no/such/path", None).unwrap().status, 404);
    let answer = client.request("PATCH", "/compute/v2.1/servers", None).unwrap();
    assert!([404, 405].contains(&answer.status), "{}", answer.status);

    // Microversions that cannot be.
    for (version, status) in [("compute 9.99", 406), ("compute nonsense", 400)] {
        let headers = [("OpenStack-API-Version", version)];
        assert_eq!(
            client
                .send("GET", "/compute/v2.1/servers", &headers, None)
                .unwrap()
                .status,
            status,
            "{version}"
        );
    }

    // Lists with impossible parameters.
    for query in ["limit=-1", "limit=x", "marker=no-such", "changes-since=yesterday"] {
        let answer = client
            .request("GET", &format!("/compute/v2.1/servers/detail?{query}"), None)
            .unwrap();
        assert_eq!(
            answer.status,
            400,
            "{query}: {}",
            String::from_utf8_lossy(&answer.body)
        );
    }

    // A body that is longer than anything an API takes is refused and does not fill the memory.
    let huge = vec![b' '; 64 << 20];
    // The connection may be closed while we still write.
    if let Ok(answer) = client.send(
        "POST",
        "/network/v2.0/networks",
        &[],
        Some(("application/json", &huge)),
    ) {
        assert!([400, 413].contains(&answer.status), "{}", answer.status);
    }
    assert_eq!(
        cloud
            .client()
            .unwrap()
            .request("GET", "/healthz", None)
            .unwrap()
            .status,
        200
    );

    // What is not even TLS is dropped, and holds up nobody.
    let listen = cloud.listen();
    cloud
        .enter(|| {
            let mut stream = TcpStream::connect(listen)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 100);
            Ok(())
        })
        .unwrap();
    assert_eq!(
        cloud
            .client()
            .unwrap()
            .request("GET", "/healthz", None)
            .unwrap()
            .status,
        200
    );
    cloud.end().unwrap();
}

//! Who may do what on the bus: the real nats-server, on the configuration that production runs.
#![expect(clippy::unwrap_used, reason = "a failing test panics")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod raw_nats;

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use raw_nats::{Message, RawClient};
use serde_json::{Value, json};
use server_processes::{Identities, Identity, LRO_STREAM_DECLARATION, NatsServer, nats_server_program};

const HOST: &str = "11111111-1111-4111-8111-111111111111";
const OTHER_HOST: &str = "22222222-2222-4222-8222-222222222222";
const PROJECT: &str = "33333333-3333-4333-8333-333333333333";
const ACCOUNT: &str = "44444444-4444-4444-8444-444444444444";

struct Bus {
    server: NatsServer,
    directory: tempfile::TempDir,
}

impl Bus {
    /// `None`, said aloud, where there is no nats-server and it is not required.
    async fn start() -> Option<Self> {
        let program = match nats_server_program() {
            Ok(program) => program,
            Err(error) if std::env::var_os("LONGHAUL_REQUIRE_TOOLS").is_none() => {
                eprintln!("SKIPPED: {error:#}");
                return None;
            }
            Err(error) => panic!("{error:#}"),
        };
        let directory = tempfile::tempdir().unwrap();
        let hosts = [HOST.to_owned(), OTHER_HOST.to_owned()];
        let server = NatsServer::start(&program, directory.path(), &hosts).await.unwrap();
        Some(Self { server, directory })
    }

    fn client(&self, identity: impl Fn(&Identities) -> &Identity) -> RawClient {
        RawClient::log_in_as(self.server.port(), identity(self.server.identities())).unwrap()
    }

    fn host(&self, id: &str) -> RawClient {
        self.client(|identities| &identities.hosts[id])
    }

    /// What the registry will do: lets the token `good` in as an account with one project. Ends after `log_ins`.
    fn answer_log_ins(&self, log_ins: usize) -> std::thread::JoinHandle<()> {
        let mut responder = self.client(|identities| &identities.hub_auth);
        let seed = self.server.identities().callout_seed.clone();
        assert!(responder.subscribe("$SYS.REQ.USER.AUTH"));
        std::thread::spawn(move || {
            for _ in 0..log_ins {
                let Message { payload, reply, .. } = responder.next_message();
                let request = &claims(&payload)["nats"];
                let mut answer = json!({ "type": "authorization_response", "version": 2 });
                if request["connect_opts"]["auth_token"] == "good" {
                    let user = json!({
                        "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
                        "pub": { "allow": [format!("api.v1.project-{PROJECT}.>"), format!("api.v1.account-{ACCOUNT}.>")] },
                        "sub": { "allow": [format!("persist.project-{PROJECT}.>"), format!("_INBOX_{ACCOUNT}.>")] },
                    });
                    let name = format!("account-{ACCOUNT}");
                    answer["jwt"] = json!(token(
                        &seed,
                        json!({ "sub": request["user_nkey"], "aud": "APP", "name": name, "nats": user })
                    ));
                } else {
                    answer["error"] = json!("unknown token");
                }
                let answer =
                    json!({ "sub": request["user_nkey"], "aud": request["server_id"]["id"], "nats": answer });
                assert!(responder.publish(&reply.unwrap(), "", token(&seed, answer).as_bytes()));
            }
        })
    }

    fn create_stream(&self) -> RawClient {
        let mut writer = self.client(|identities| &identities.hub_writer);
        let inbox = "_INBOX_hub-writer.create";
        let created = writer.request("$JS.API.STREAM.CREATE.LRO", inbox, LRO_STREAM_DECLARATION.as_bytes());
        let created: Value = serde_json::from_slice(&created.payload).unwrap();
        assert_eq!(created["error"], Value::Null);
        writer
    }
}

fn token(seed: &str, mut claims: Value) -> String {
    let key = nkeys::KeyPair::from_seed(seed).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    claims["iss"] = json!(key.public_key());
    claims["iat"] = json!(now.as_secs());
    claims["exp"] = json!(now.as_secs() + 300);
    claims["jti"] = json!(now.as_nanos().to_string());
    let encode = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(claims));
    let signature = BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn claims(token: &[u8]) -> Value {
    let claims = std::str::from_utf8(token).unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(claims.as_bytes()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_may_do_what_is_listed_and_nothing_else() {
    let Some(bus) = Bus::start().await else { return };
    let host = |verb: &str| format!("work.v1.host-{HOST}.{verb}");
    let other_host = |verb: &str| format!("work.v1.host-{OTHER_HOST}.{verb}");
    let persist = format!("persist.project-{PROJECT}.lro.x.evt");
    let create = format!("api.v1.project-{PROJECT}.lro.create");
    let (wake, other_wake) = (format!("wake.host-{HOST}"), format!("wake.host-{OTHER_HOST}"));
    let (inbox, other_inbox) = (format!("_INBOX_host-{HOST}.a.b"), format!("_INBOX_host-{OTHER_HOST}.a.b"));
    let identities = bus.server.identities();
    const MAY: bool = true;
    const MAY_NOT: bool = false;
    let table: &[(&Identity, &str, &str, bool)] = &[
        (&identities.hub, "SUB", "api.v1.>", MAY),
        (&identities.hub, "SUB", "work.v1.*.claim", MAY),
        (&identities.hub, "SUB", "$SRV.PING", MAY),
        (&identities.hub, "SUB", "persist.*.lro.>", MAY),
        (&identities.hub, "SUB", "_INBOX_hub.a", MAY),
        (&identities.hub, "SUB", "_INBOX_hub-writer.>", MAY_NOT),
        (&identities.hub, "SUB", "_INBOX.>", MAY_NOT),
        (&identities.hub, "SUB", &inbox, MAY_NOT),
        (&identities.hub, "SUB", ">", MAY_NOT),
        (&identities.hub, "SUB", "$JS.>", MAY_NOT),
        (&identities.hub, "PUB", &wake, MAY),
        (&identities.hub, "PUB", &inbox, MAY),
        (&identities.hub, "PUB", "_INBOX_scheduler.a", MAY),
        (&identities.hub, "PUB", "_INBOX.a.b", MAY),
        (&identities.hub, "PUB", "_R_.a.b", MAY),
        (&identities.hub, "PUB", "_INBOX_hub-writer.a", MAY_NOT),
        (&identities.hub, "PUB", &persist, MAY_NOT),
        (&identities.hub, "PUB", &create, MAY_NOT),
        (&identities.hub, "PUB", "$JS.API.STREAM.INFO.LRO", MAY_NOT),
        (&identities.hub_writer, "PUB", &persist, MAY),
        (&identities.hub_writer, "PUB", "$JS.API.STREAM.INFO.LRO", MAY),
        (&identities.hub_writer, "PUB", "$JS.API.DIRECT.GET.LRO", MAY),
        (&identities.hub_writer, "PUB", "$JS.API.STREAM.DELETE.LRO", MAY_NOT),
        (&identities.hub_writer, "PUB", "$JS.API.STREAM.CREATE.OTHER", MAY_NOT),
        (&identities.hub_writer, "PUB", "$JS.API.CONSUMER.CREATE.LRO.x", MAY_NOT),
        (&identities.hub_writer, "PUB", "persist.project-x.files.y", MAY_NOT),
        (&identities.hub_writer, "PUB", "wake.hub", MAY_NOT),
        (&identities.hub_writer, "SUB", "_INBOX_hub-writer.a.b", MAY),
        (&identities.hub_writer, "SUB", "api.v1.>", MAY_NOT),
        (&identities.hub_writer, "SUB", "persist.>", MAY_NOT),
        (&identities.scheduler, "PUB", "work.v1.hub.claim", MAY),
        (&identities.scheduler, "PUB", &host("claim"), MAY_NOT),
        (&identities.scheduler, "PUB", &create, MAY_NOT),
        (&identities.scheduler, "PUB", &persist, MAY_NOT),
        (&identities.scheduler, "SUB", "wake.hub", MAY),
        (&identities.scheduler, "SUB", "wake.any", MAY),
        (&identities.scheduler, "SUB", "$SRV.INFO", MAY),
        (&identities.scheduler, "SUB", "_INBOX_scheduler.>", MAY),
        (&identities.scheduler, "SUB", &wake, MAY_NOT),
        (&identities.scheduler, "SUB", "work.v1.>", MAY_NOT),
        (&identities.hosts[HOST], "PUB", &host("claim"), MAY),
        (&identities.hosts[HOST], "PUB", &host("finish"), MAY),
        (&identities.hosts[HOST], "PUB", &other_host("claim"), MAY_NOT),
        (&identities.hosts[HOST], "PUB", "work.v1.hub.claim", MAY_NOT),
        (&identities.hosts[HOST], "PUB", &create, MAY_NOT),
        (&identities.hosts[HOST], "PUB", &persist, MAY_NOT),
        (&identities.hosts[HOST], "PUB", &other_wake, MAY_NOT),
        (&identities.hosts[HOST], "PUB", &other_inbox, MAY_NOT),
        (&identities.hosts[HOST], "PUB", "$JS.API.INFO", MAY_NOT),
        (&identities.hosts[HOST], "PUB", "$SRV.PING", MAY_NOT),
        (&identities.hosts[HOST], "SUB", &wake, MAY),
        (&identities.hosts[HOST], "SUB", &inbox, MAY),
        (&identities.hosts[HOST], "SUB", "$SRV.STATS", MAY),
        (&identities.hosts[HOST], "SUB", &other_wake, MAY_NOT),
        (&identities.hosts[HOST], "SUB", &other_inbox, MAY_NOT),
        (&identities.hosts[HOST], "SUB", "work.v1.>", MAY_NOT),
        (&identities.hosts[HOST], "SUB", "persist.>", MAY_NOT),
        (&identities.hosts[HOST], "SUB", "api.v1.>", MAY_NOT),
        (&identities.ops, "PUB", &create, MAY),
        (&identities.ops, "PUB", "api.v1.hub.project.create", MAY),
        (&identities.ops, "PUB", "$SRV.PING", MAY),
        (&identities.ops, "PUB", "$JS.API.INFO", MAY),
        (&identities.ops, "PUB", "$JS.API.STREAM.NAMES", MAY),
        (&identities.ops, "PUB", "$JS.API.STREAM.MSG.GET.LRO", MAY),
        (&identities.ops, "PUB", "$JS.API.DIRECT.GET.LRO.persist.a", MAY),
        (&identities.ops, "PUB", "$JS.API.CONSUMER.CREATE.LRO.x", MAY),
        (&identities.ops, "PUB", "$SYS.REQ.USER.INFO", MAY),
        (&identities.ops, "PUB", "$SYS.REQ.SERVER.PING", MAY_NOT),
        (&identities.ops, "PUB", "$JS.API.STREAM.DELETE.LRO", MAY_NOT),
        (&identities.ops, "PUB", "$JS.API.STREAM.PURGE.LRO", MAY_NOT),
        (&identities.ops, "PUB", "$JS.API.STREAM.UPDATE.LRO", MAY_NOT),
        (&identities.ops, "PUB", "$JS.API.STREAM.CREATE.LRO", MAY_NOT),
        (&identities.ops, "PUB", "$JS.API.STREAM.MSG.DELETE.LRO", MAY_NOT),
        (&identities.ops, "PUB", &persist, MAY_NOT),
        (&identities.ops, "PUB", "work.v1.hub.claim", MAY_NOT),
        (&identities.ops, "PUB", "wake.hub", MAY_NOT),
        (&identities.ops, "SUB", "persist.>", MAY),
        (&identities.ops, "SUB", "_INBOX.>", MAY),
        (&identities.ops, "SUB", "work.v1.>", MAY_NOT),
        (&identities.ops, "SUB", &inbox, MAY_NOT),
        (&identities.ops, "SUB", "_INBOX_hub.>", MAY_NOT),
        (&identities.hub_auth, "SUB", "$SYS.REQ.USER.AUTH", MAY),
        (&identities.hub_auth, "SUB", "$SYS.>", MAY_NOT),
        (&identities.hub_auth, "SUB", "api.v1.>", MAY_NOT),
        (&identities.hub_auth, "PUB", "$SYS.REQ.USER.AUTH", MAY_NOT),
        (&identities.hub_auth, "PUB", "api.v1.hub.project.create", MAY_NOT),
    ];
    let mut wrong = Vec::new();
    for (identity, verb, subject, expected) in table {
        let mut client = RawClient::log_in_as(bus.server.port(), identity).unwrap();
        let allowed =
            if *verb == "SUB" { client.subscribe(subject) } else { client.publish(subject, "", b"") };
        if allowed != *expected {
            wrong.push(format!("{} {verb} {subject}: allowed = {allowed}", identity.user));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_password_or_while_the_registry_is_away() {
    let Some(bus) = Bus::start().await else { return };
    for credentials in [
        json!({}),
        json!({ "auth_token": "good" }),
        json!({ "user": "hub", "pass": "wrong" }),
        json!({ "user": "nobody", "pass": "wrong" }),
        json!({ "user": "ops" }),
    ] {
        let refusal = RawClient::log_in(bus.server.port(), credentials.clone()).err();
        assert!(refusal.is_some_and(|text| text.contains("Authorization Violation")), "{credentials}");
    }
    let identities = bus.server.identities();
    let Identities { hub, hub_writer, scheduler, ops, hub_auth, sys, .. } = identities;
    for identity in [hub, hub_writer, scheduler, ops, hub_auth, sys, &identities.hosts[HOST]] {
        assert_eq!(RawClient::log_in_as(bus.server.port(), identity).err(), None, "{}", identity.user);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gets_exactly_what_the_registry_signed_in_the_account_app() {
    let Some(bus) = Bus::start().await else { return };
    let responder = bus.answer_log_ins(2);
    assert!(RawClient::log_in(bus.server.port(), json!({ "auth_token": "bad" })).is_err());
    let mut person = RawClient::log_in(bus.server.port(), json!({ "auth_token": "good" })).unwrap();
    responder.join().unwrap();

    for refused in [
        format!("persist.project-{PROJECT}.lro.x.evt"),
        format!("api.v1.project-{ACCOUNT}.lro.get"),
        format!("work.v1.host-{HOST}.claim"),
        "api.v1.hub.project.create".to_owned(),
        "$JS.API.INFO".to_owned(),
        "$SRV.PING".to_owned(),
        "_R_.a.b".to_owned(),
        "$SYS.REQ.USER.AUTH".to_owned(),
    ] {
        assert!(!person.publish(&refused, "", b""), "may publish {refused}");
    }
    for refused in
        ["persist.>", "persist.*.lro.>", "_INBOX.>", ">", "api.v1.>", "$SRV.>", "$JS.>", "_R_.>", "$SYS.>"]
    {
        assert!(!person.subscribe(refused), "may subscribe to {refused}");
    }

    // A request reaches a service in BUS; who asks is the server's word, whatever the request said.
    let mut hub = bus.client(|identities| &identities.hub);
    assert!(hub.subscribe("api.v1.>"));
    let inbox = format!("_INBOX_{ACCOUNT}.1");
    let subject = format!("api.v1.project-{PROJECT}.lro.create");
    assert!(person.subscribe(&inbox));
    let forged = "Nats-Request-Info: {\"acc\":\"BUS\",\"user\":\"ops\"}\r\n";
    assert!(person.publish_with_headers(&subject, &inbox, forged, b"{}"));
    let request = hub.next_message();
    assert_eq!(request.subject, subject);
    assert!(
        request.headers.contains(&format!("\"acc\":\"APP\",\"user\":\"account-{ACCOUNT}\"")),
        "{}",
        request.headers
    );
    assert_eq!(request.headers.matches("Nats-Request-Info").count(), 1, "{}", request.headers);
    let reply = request.reply.unwrap();
    assert!(reply.starts_with("_R_."), "{reply}");
    assert!(hub.publish(&reply, "", b"answer"));
    assert_eq!(person.next_message().payload, b"answer");

    // A chosen reply subject reaches nothing in BUS.
    assert!(person.publish(&subject, "persist.project-x.lro.y.evt", b"{}"));
    assert!(hub.next_message().reply.unwrap().starts_with("_R_."));

    // Progress that is written in BUS arrives.
    let mut writer = bus.create_stream();
    assert!(person.subscribe(&format!("persist.project-{PROJECT}.lro.*.evt")));
    assert!(writer.publish(&format!("persist.project-{PROJECT}.lro.x.evt"), "", b"{\"n\":1}"));
    assert_eq!(person.next_message().payload, b"{\"n\":1}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_cannot_make_the_hub_write_elsewhere() {
    let Some(bus) = Bus::start().await else { return };
    let (mut hub, mut host) = (bus.client(|identities| &identities.hub), bus.host(HOST));
    assert!(hub.subscribe("work.v1.*.*"));
    let claim = format!("work.v1.host-{HOST}.claim");
    for reply in [
        format!("persist.project-{PROJECT}.lro.x.evt"),
        "wake.any.x".to_owned(),
        "_INBOX_hub-writer.a".to_owned(),
    ] {
        assert!(host.publish(&claim, &reply, b""));
        assert_eq!(hub.next_message().reply.as_deref(), Some(reply.as_str()));
        // A nudge carries nothing that is trusted, so that one does no harm.
        assert_eq!(hub.publish(&reply, "", b"answer"), reply.starts_with("wake."), "{reply}");
    }
    let inbox = format!("_INBOX_host-{HOST}.1");
    assert!(host.subscribe(&inbox) && host.publish(&claim, &inbox, b""));
    assert!(hub.next_message().reply.is_some_and(|reply| hub.publish(&reply, "", b"answer")));
    assert_eq!(host.next_message().payload, b"answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_each_question_of_an_operator_once() {
    let Some(bus) = Bus::start().await else { return };
    let (mut ops, mut host) = (bus.client(|identities| &identities.ops), bus.host(HOST));
    assert!(host.subscribe("$SRV.PING") && ops.subscribe("_INBOX.1"));
    assert!(ops.publish("$SRV.PING", "_INBOX.1", b""));
    assert!(host.next_message().reply.is_some());
    assert!(host.publish("_INBOX.1", "", b"pong"));
    assert_eq!(ops.next_message().payload, b"pong");
    assert!(!host.publish("_INBOX.1", "", b"again"));
    assert!(!host.publish("_INBOX.2", "", b"never asked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_added_while_the_others_stay_connected() {
    let Some(mut bus) = Bus::start().await else { return };
    let new_host = "55555555-5555-4555-8555-555555555555";
    let (mut hub, mut old_host) = (bus.client(|identities| &identities.hub), bus.host(HOST));
    assert!(hub.subscribe("work.v1.*.*"));
    let identity = bus.server.add_host(new_host).await.unwrap();
    assert!(hub.is_open() && old_host.is_open());
    let mut client = RawClient::log_in_as(bus.server.port(), &identity).unwrap();
    let inbox = format!("{}.1", identity.inbox_prefix);
    assert!(
        client.subscribe(&inbox) && client.publish(&format!("work.v1.host-{new_host}.claim"), &inbox, b"")
    );
    assert!(hub.next_message().reply.is_some_and(|reply| hub.publish(&reply, "", b"answer")));
    assert_eq!(client.next_message().payload, b"answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_is_declared_as_the_file_says_and_its_messages_outlive_a_restart() {
    let Some(mut bus) = Bus::start().await else { return };
    let mut writer = bus.create_stream();
    let stored = writer.request("persist.hub.lro.x.evt", "_INBOX_hub-writer.2", b"{}");
    assert_eq!(serde_json::from_slice::<Value>(&stored.payload).unwrap()["seq"], 1);
    let (port, password) = (bus.server.port(), bus.server.identities().ops.password.clone());

    bus.server.restart().await.unwrap();
    assert_eq!((bus.server.port(), &bus.server.identities().ops.password), (port, &password));
    // An update with the same declaration changes nothing, so it may be repeated at every start of the registry.
    let mut writer = bus.client(|identities| &identities.hub_writer);
    let updated =
        writer.request("$JS.API.STREAM.UPDATE.LRO", "_INBOX_hub-writer.3", LRO_STREAM_DECLARATION.as_bytes());
    let updated: Value = serde_json::from_slice(&updated.payload).unwrap();
    assert_eq!(updated["state"]["messages"], 1, "{updated}");
    let declared: Value = serde_json::from_str(LRO_STREAM_DECLARATION).unwrap();
    for (field, value) in declared.as_object().unwrap() {
        assert_eq!(&updated["config"][field], value, "{field}");
    }
    // What an operator sees.
    let mut ops = bus.client(|identities| &identities.ops);
    let names = ops.request("$JS.API.STREAM.NAMES", "_INBOX.1", b"");
    assert_eq!(serde_json::from_slice::<Value>(&names.payload).unwrap()["streams"], json!(["LRO"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_configuration_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(bus) = Bus::start().await else { return };
    for file in ["nats/generated.conf", "nats/server.conf", "secrets/nats.json"] {
        let mode = bus.directory.path().join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_directory_is_refused() {
    let Some(bus) = Bus::start().await else { return };
    let program = nats_server_program().unwrap();
    let error = NatsServer::start(&program, bus.directory.path(), &[]).await.err().unwrap();
    assert!(format!("{error:#}").contains("another nats-server"), "{error:#}");
}

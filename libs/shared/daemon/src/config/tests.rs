use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::ValueEnum;
use tempfile::TempDir;

use super::*;
use crate::secret::Secret;
use crate::telemetry::TelemetrySettings;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    Reject,
    DropLru,
}

#[derive(Debug, clap::Args)]
struct Sample {
    /// Address to listen on
    #[arg(
        long,
        env = "ORCHESTRATORD_ADDR",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:8080"
    )]
    addr: SocketAddr,

    /// Several machines
    #[arg(long, env = "ORCHESTRATORD_CLOUD_PROFILE")]
    cloud_profile: bool,

    /// Longest queue of a pool
    #[arg(
        long,
        env = "ORCHD_ADMISSION_CAPACITY",
        value_name = "N",
        default_value = "100"
    )]
    admission_capacity: NonZeroU32,

    /// What happens when it is full
    #[arg(long, env = "ORCHD_ADMISSION_POLICY", default_value = "reject")]
    admission_policy: Policy,

    /// A node is offline after this
    #[arg(long, env = "ORCHESTRATORD_NODE_TIMEOUT_MS", default_value = "30000", value_parser = milliseconds)]
    node_timeout_ms: Duration,

    /// Nodes to poll
    #[arg(long, env = "ORCHD_POOL_MANAGERS", value_name = "URL", value_delimiter = ',')]
    pool_managers: Vec<String>,

    /// Keys that get in
    #[arg(long, env = "ORCHD_API_KEYS", value_name = "KEY", value_delimiter = ',', value_parser = key)]
    api_keys: Vec<Secret>,

    /// Where the store is [default: the user's data directory]
    ///
    /// It is one file, and safe to copy while nothing runs.
    #[arg(long, env = "ORCHD_STORE")]
    store: Option<PathBuf>,

    /// Must be given
    #[arg(long, env = "ORCHD_REQUIRED", required = true)]
    required: String,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    telemetry: TelemetrySettings,
}

fn key(text: &str) -> Result<Secret, String> {
    if text.len() < 4 {
        Err(format!("{text:?} is too short"))
    } else {
        Ok(Secret::new(text))
    }
}

impl Settings for Sample {
    const SECTION: &'static str = "orchestratord";
    const ABOUT: &'static str = "A sample";
    const ALIASES: &'static [EnvAlias] = &[
        EnvAlias::same("addr", "ORCHD_BIND_ADDR"),
        EnvAlias::words(
            "cloud_profile",
            "ORCHD_PROFILE",
            &[("home", "false"), ("cloud", "true")],
        ),
    ];
    const PREFIXES: &'static [&'static str] = &["ORCHD_", "ORCHESTRATORD_"];
    const FOREIGN: &'static [&'static str] = &["ORCHESTRATORD_URL"];
}

fn load_with(
    arguments: &[&str],
    environment: &[(&str, &str)],
    file: &str,
) -> Result<Loaded<Sample>, ConfigError> {
    let directory = TempDir::new().unwrap();
    if !file.is_empty() {
        fs::write(directory.path().join("remuda.toml"), file).unwrap();
    }
    let mut environment = environment.to_vec();
    environment.push(("ORCHD_REQUIRED", "yes"));
    load(&Sources::of(arguments, environment).in_directory(directory.path()))
}

#[track_caller]
fn settings(arguments: &[&str], environment: &[(&str, &str)], file: &str) -> Sample {
    load_with(arguments, environment, file)
        .unwrap_or_else(|error| panic!("{error}"))
        .settings
}

/// The error's text, without the temporary directory.
#[track_caller]
fn refused(arguments: &[&str], environment: &[(&str, &str)], file: &str) -> String {
    let error = load_with(arguments, environment, file)
        .map(|loaded| loaded.settings)
        .unwrap_err();
    assert_eq!(crate::exit::code_of(&error), 64);
    let text = error.to_string();
    let line = |line: &str| match line.find("/remuda.toml") {
        Some(end) => {
            let start = line[..end].rfind(' ').map_or(0, |space| space + 1);
            format!("{}{}", &line[..start], &line[end + 1..])
        }
        None => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn flags_over_environment_over_file_over_defaults() {
    let file = "[orchestratord]\nadmission_capacity = 7\n";
    let environment = [("ORCHD_ADMISSION_CAPACITY", "8")];
    let capacity = |settings: Sample| settings.admission_capacity.get();
    assert_eq!(capacity(settings(&[], &[], "")), 100);
    assert_eq!(capacity(settings(&[], &[], file)), 7);
    assert_eq!(capacity(settings(&[], &environment, file)), 8);
    assert_eq!(
        capacity(settings(&["--admission-capacity", "9"], &environment, file)),
        9
    );
}

#[test]
fn first_name_wins_and_second_names_have_their_own_words() {
    let port = |environment: &[(&str, &str)]| settings(&[], environment, "").addr.port();
    assert_eq!(port(&[("ORCHD_BIND_ADDR", "127.0.0.1:1")]), 1);
    assert_eq!(
        port(&[
            ("ORCHD_BIND_ADDR", "127.0.0.1:1"),
            ("ORCHESTRATORD_ADDR", "127.0.0.1:2")
        ]),
        2
    );
    assert_eq!(
        port(&[("ORCHD_BIND_ADDR", "127.0.0.1:1"), ("ORCHESTRATORD_ADDR", "")]),
        1,
        "empty is not set"
    );

    let cloud = |environment: &[(&str, &str)]| settings(&[], environment, "").cloud_profile;
    assert!(cloud(&[("ORCHD_PROFILE", "cloud")]));
    assert!(!cloud(&[("ORCHD_PROFILE", "home")]));
    assert!(!cloud(&[
        ("ORCHD_PROFILE", "cloud"),
        ("ORCHESTRATORD_CLOUD_PROFILE", "false")
    ]));
    assert_eq!(
        refused(&[], &[("ORCHD_PROFILE", "clod")], ""),
        "ORCHD_PROFILE: is \"clod\"; right would be home or cloud"
    );
}

#[test]
fn flags_can_be_switched_off_again() {
    let cloud =
        |arguments: &[&str]| settings(arguments, &[("ORCHESTRATORD_CLOUD_PROFILE", "1")], "").cloud_profile;
    assert!(cloud(&[]));
    assert!(!cloud(&["--cloud-profile=false"]));
    assert!(
        settings(
            &["--cloud-profile"],
            &[],
            "[orchestratord]\ncloud_profile = false"
        )
        .cloud_profile
    );
}

#[test]
fn every_kind_of_value_comes_from_the_file() {
    let read = settings(
        &[],
        &[],
        "[orchestratord]\naddr = '[::1]:0'\ncloud-profile = true\nadmission-policy = 'drop-lru'\n\
         node_timeout_ms = 0x10\npool_managers = ['http://a', 'http://b']\napi_keys = 'first,second'\nlog = 'debug'\n",
    );
    assert_eq!(read.addr, "[::1]:0".parse().unwrap());
    assert!(read.cloud_profile);
    assert_eq!(read.admission_policy, Policy::DropLru);
    assert_eq!(read.node_timeout_ms, Duration::from_millis(16));
    assert_eq!(read.pool_managers, ["http://a", "http://b"]);
    assert_eq!(read.api_keys.len(), 2);
    assert_eq!(read.telemetry.log, "debug");
    assert_eq!(settings(&[], &[("RUST_LOG", "warn")], "").telemetry.log, "warn");
    assert_eq!(
        settings(&[], &[("RUST_LOG", "warn"), ("REMUDA_LOG", "trace")], "")
            .telemetry
            .log,
        "trace"
    );
}

#[test]
fn the_file_is_checked_down_to_the_line() {
    let check = |file: &str, expect: &str| assert_eq!(refused(&[], &[], file), expect);
    check(
        "\n[orchestratord]\naddres = 'x'\n",
        "remuda.toml:3: unknown key `addres` in [orchestratord]; did you mean `addr`?",
    );
    check(
        "[orchestratord]\nxyz = 1\n",
        "remuda.toml:2: unknown key `xyz` in [orchestratord]; `orchestratord --help` lists what there is",
    );
    check(
        "[orchestratord]\n\nadmission_policy = 'drop'\n",
        "remuda.toml:3: `admission_policy` is \"drop\"; right would be reject or drop-lru \
         (What happens when it is full; the default is reject)",
    );
    check(
        "[orchestratord]\nadmission_capacity = 0\nnode_timeout_ms = 'soon'\ncloud_profile = 'perhaps'\naddr = {}\n",
        "remuda.toml:2: `admission_capacity` is \"0\"; number would be zero for non-zero type \
         (Longest queue of a pool; the default is 100)\n\
         remuda.toml:3: `node_timeout_ms` is \"soon\"; right would be a whole number of milliseconds \
         (or with a unit: 250ms, 5s, 2m) (A node is offline after this; the default is 30000)\n\
         remuda.toml:4: `cloud_profile` is \"perhaps\"; right would be true or false \
         (Several machines; the default is false)\n\
         remuda.toml:5: `addr` a value is wanted here, not a table",
    );
    check(
        "[orchestratord]\naddr = ['a', 'b']\n",
        "remuda.toml:2: `addr` takes one value, not a list",
    );
    check(
        "[orchestrator]\n",
        "remuda.toml:1: unknown key `orchestrator`; did you mean `orchestratord`?",
    );
    check(
        "orchestratord = 3",
        "remuda.toml:1: `orchestratord` is a section; write it as [orchestratord]",
    );
    assert!(refused(&[], &[], "[orchestratord]\naddr = \n").starts_with("remuda.toml:2: not TOML: "));
    settings(
        &[],
        &[],
        "[pool-managerd]\nanything = 1\n[[pools]]\nid = 'other'\n",
    );
}

#[test]
fn the_environment_is_checked_and_says_its_names() {
    assert_eq!(
        refused(
            &[],
            &[
                ("ORCHD_ADMISSION_CAPACITY", "many"),
                ("ORCHD_BIND_ADDR", "localhost")
            ],
            ""
        ),
        "ORCHD_BIND_ADDR: is \"localhost\"; invalid socket address syntax \
         (Address to listen on; the default is 127.0.0.1:8080)\n\
         ORCHD_ADMISSION_CAPACITY: is \"many\"; invalid digit found in string \
         (Longest queue of a pool; the default is 100)"
    );
    assert_eq!(
        refused(&[], &[("ORCHD_ADMISION_CAPACITY", "5")], ""),
        "ORCHD_ADMISION_CAPACITY: no setting has this name; did you mean ORCHD_ADMISSION_CAPACITY?"
    );
    settings(
        &[],
        &[
            ("ORCHESTRATORD_URL", "http://other"),
            ("POOL_MANAGERD_WHATEVER", "1"),
            ("ORCHESTRATORD_SERVICE_HOST", "10.0.0.1"),
            ("ORCHESTRATORD_SERVICE_PORT_HTTP", "8080"),
            ("ORCHESTRATORD_PORT", "tcp://10.0.0.1:8080"),
            ("ORCHESTRATORD_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ],
        "",
    );
}

#[test]
fn the_command_line_is_checked_before_everything_else() {
    let text = refused(&["--admision-capacity", "1"], &[], "");
    assert!(
        text.contains("--admision-capacity") && text.contains("--admission-capacity"),
        "{text}"
    );
    let text = refused(&["--admission-policy=drop"], &[], "not toml");
    assert!(text.contains("reject") && text.contains("drop-lru"), "{text}");
}

#[test]
fn a_wrong_secret_is_not_repeated() {
    for text in [
        refused(&[], &[("ORCHD_API_KEYS", "abc")], ""),
        refused(&[], &[], "[orchestratord]\napi_keys = ['abc']"),
        refused(&["--api-keys", "abc"], &[], ""),
        load_with(&["--help"], &[("ORCHD_API_KEYS", "long-enough-abc")], "")
            .unwrap_err()
            .to_string(),
    ] {
        assert!(!text.contains("abc"), "{text}");
    }
    let settings = settings(&[], &[("ORCHD_API_KEYS", "long-enough-abc")], "");
    assert!(!format!("{settings:?}").contains("abc"));
}

#[test]
fn what_is_required_may_come_from_anywhere() {
    let bare: [(&str, &str); 0] = [];
    let nowhere = load::<Sample>(&Sources::of([""; 0], bare)).unwrap_err();
    assert!(nowhere.to_string().contains("--required"), "{nowhere}");
    assert_eq!(
        load::<Sample>(&Sources::of(["--required=x"], bare))
            .unwrap()
            .settings
            .required,
        "x"
    );
    assert_eq!(settings(&[], &[], "").required, "yes");
}

#[test]
fn a_file_can_be_named_and_must_then_be_there() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("other.toml");
    fs::write(&path, "[orchestratord]\nadmission_capacity = 3\n").unwrap();
    let path = path.to_str().unwrap();
    for (arguments, environment) in [
        (vec!["--config", path], vec![]),
        (vec![], vec![("REMUDA_CONFIG", path)]),
    ] {
        assert_eq!(settings(&arguments, &environment, "").admission_capacity.get(), 3);
    }
    let text = refused(&["--config", "/nonexistent/remuda.toml"], &[], "");
    assert!(text.starts_with("cannot read the settings file"), "{text}");
}

#[test]
fn help_shows_both_names_and_ends_well() {
    let error = load_with(&["--help"], &[], "broken = ").unwrap_err();
    assert!(error.is_help());
    assert_eq!(error.exit_code(), 0);
    let text = error.to_string();
    assert!(
        text.contains("[env: ORCHESTRATORD_ADDR, ORCHD_BIND_ADDR]"),
        "{text}"
    );
    assert!(text.contains("[default: 127.0.0.1:8080]"), "{text}");
    assert!(
        text.contains("[env: ORCHD_STORE]") && text.contains("safe to copy"),
        "{text}"
    );
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Pool {
    id: String,
    #[serde(default)]
    slots: Option<u32>,
}

#[test]
fn sections_are_read_by_their_own_type() {
    let read = |text: &str| ConfigFile::from_text(text).unwrap().section::<Vec<Pool>>("pools");
    let pools = read("[[pools]]\nid = 'a'\n[[pools]]\nid = 'b'\nslots = 2\n")
        .unwrap()
        .unwrap();
    assert_eq!((pools[0].id.as_str(), pools[1].slots), ("a", Some(2)));
    assert!(read("").unwrap().is_none());
    let text = read("[[pools]]\nid = 'a'\n\n[[pools]]\nid = 'b'\nslot = 2\n")
        .unwrap_err()
        .to_string();
    assert!(text.starts_with("remuda.toml:6: unknown field `slot`"), "{text}");
    let text = read("[[pools]]\nid = 'a'\nslots = -1\n").unwrap_err().to_string();
    assert!(text.starts_with("remuda.toml:3: "), "{text}");
}

#[test]
fn a_problem_seen_later_names_the_setting_fully() {
    assert_eq!(
        problem::<Sample>("addr", "is needed in the cloud").to_string(),
        "ORCHESTRATORD_ADDR, --addr, `addr` in [orchestratord]: is needed in the cloud"
    );
    assert_eq!(
        problem::<Sample>("dry_run", "is not possible").to_string(),
        "--dry-run: is not possible"
    );
}

#[test]
fn durations_and_sizes() {
    let ms = |text| milliseconds(text).map(|duration| duration.as_millis()).ok();
    assert_eq!(
        [ms("1500"), ms("2s"), ms("5 m"), ms("1h")],
        [Some(1500), Some(2000), Some(300_000), Some(3_600_000)]
    );
    assert_eq!(
        [
            ms("0"),
            ms("-1"),
            ms("1.5s"),
            ms("1d"),
            ms(""),
            ms("99999999999999")
        ],
        [None; 6]
    );
    assert_eq!(seconds("10"), Ok(Duration::from_secs(10)));
    assert_eq!(seconds_or_zero("0"), Ok(Duration::ZERO));
    assert_eq!(milliseconds_or_zero("0"), Ok(Duration::ZERO));
    assert_eq!(
        [bytes("10"), bytes("64KiB"), bytes("10MB")],
        [Ok(10), Ok(65_536), Ok(10_000_000)]
    );
    assert!(bytes("64K").is_err() && bytes("20000000000GiB").is_err());
}

#[test]
fn the_reference_has_every_setting_and_is_checked() {
    let table = reference::<Sample>();
    assert!(
        table.contains(
            "| `addr` | `--addr` | `ORCHESTRATORD_ADDR`, `ORCHD_BIND_ADDR` | `127.0.0.1:8080` | Address to listen on |"
        ),
        "{table}"
    );
    assert!(table.contains("`REMUDA_LOG`, `RUST_LOG`"), "{table}");
    assert!(
        table.contains("What happens when it is full: `reject`, `drop-lru` |"),
        "{table}"
    );
    assert!(
        table.contains("`ORCHD_STORE` | the user's data directory | Where the store is |"),
        "{table}"
    );
    assert!(
        table.contains("Keys that get in; a secret, never shown |"),
        "{table}"
    );

    let directory = TempDir::new().unwrap();
    let path = directory.path().join("settings.md");
    let document = format!("# x\n\n<!-- orchestratord: begin -->\n\n{table}\n<!-- orchestratord: end -->\n");
    fs::write(&path, &document).unwrap();
    check_reference::<Sample>(&path).unwrap();
    fs::write(&path, document.replace("8080", "8081")).unwrap();
    assert!(
        check_reference::<Sample>(&path)
            .unwrap_err()
            .contains("REMUDA_UPDATE_DOCS=1")
    );
}

#[test]
fn numbers_and_addresses_say_what_would_be_right() {
    assert_eq!(whole::<1, 16>("16"), Ok(16));
    for wrong in ["0", "17", "-1", "1.5", "many", "", "99999999999999999999"] {
        assert!(
            whole::<1, 16>(wrong).unwrap_err().contains("from 1 to 16"),
            "{wrong}"
        );
    }
    assert_eq!((some_bytes("1KiB"), some_bytes("0").is_err()), (Ok(1024), true));
    assert!(http_address("http://127.0.0.1:4318").is_ok());
    for wrong in ["127.0.0.1:4318", "grpc://host:4317", "http://", ""] {
        assert!(http_address(wrong).is_err(), "{wrong}");
    }
}

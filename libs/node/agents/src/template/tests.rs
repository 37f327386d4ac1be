use proptest::prelude::*;

use super::*;

fn refused(text: &str, place: Place, expect: &str) {
    let error = Template::parse(text, place).unwrap_err();
    assert_eq!(error.to_string(), expect);
}

#[test]
fn what_is_wrong_with_a_template_is_said() {
    refused(
        "--model={{ MODLE }}",
        Place::Plain,
        "there is no variable \"MODLE\"; there are INSTALL, HOME, WORKSPACE, MODEL, EFFORT, SESSION, BASE_URL, KEY",
    );
    refused("{{ MODEL", Place::Plain, "\"{{\" without \"}}\" in \"{{ MODEL\"");
    let quotes = "{{ KEY }} must stand within double quotes in a JSON or TOML text";
    refused("{\"a\": {{ KEY }}}", Place::Json, quotes);
    refused("a = '{{ KEY }}'", Place::Toml, quotes);
    refused("a = \"\" # \"{{ KEY }}\"", Place::Toml, quotes);
    refused(
        "A=\"{{ KEY }}\"",
        Place::Shell,
        "{{ KEY }} must stand outside quotes in a shell text, which quotes it by itself",
    );
}

#[test]
fn a_value_may_be_refused() {
    let model = Template::parse("{{ MODEL }}", Place::Plain).unwrap();
    let said = |value: &str| {
        let values = Values::new().with(Variable::Model, value);
        model.expand(&values).unwrap_err().to_string()
    };
    assert_eq!(
        said("--dangerous"),
        "the value of MODEL begins with \"-\" and would be read as a flag"
    );
    assert_eq!(said("a\0b"), "the value of MODEL holds a zero byte");
    assert_eq!(
        model.expand(&Values::new()).unwrap_err().to_string(),
        "MODEL is not known here"
    );
}

#[test]
fn nothing_expands_twice_and_no_value_is_printed() {
    let template = Template::parse("{{ MODEL }}/{{ KEY }}", Place::Plain).unwrap();
    let values = Values::new()
        .with(Variable::Model, "{{ KEY }}")
        .with(Variable::Key, "secret-value");
    assert_eq!(template.expand(&values).unwrap(), "{{ KEY }}/secret-value");
    assert!(!format!("{values:?}").contains("secret-value"));
}

fn anything() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[\"'\\\\{}$`#\n\r\t;=\\[\\] -]{0,24}",
        Just("\", \"x\": \"".to_owned()),
        Just("'; touch x; '".to_owned()),
        Just("{{ KEY }}".to_owned()),
    ]
    .prop_filter("a zero byte is refused", |text| !text.contains('\0'))
}

proptest! {
    #[test]
    fn in_json_and_toml_a_value_stays_one_text(value in anything(), key in anything()) {
        let values = Values::new().with(Variable::Model, &*value).with(Variable::Key, &*key);
        let text = r#"{"a": "x{{ MODEL }}y", "b": ["{{ KEY }}"], "c": 1}"#;
        let json = Template::parse(text, Place::Json).unwrap().expand(&values).unwrap();
        let expected = serde_json::json!({"a": format!("x{value}y"), "b": [key], "c": 1});
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);

        let text = "p={a=\"x{{ MODEL }}y\",b=[\"{{ KEY }}\"],c=1}";
        let read = Template::parse(text, Place::Toml).unwrap().expand(&values).unwrap();
        let read: toml::Table = toml::from_str(&read).unwrap();
        let inner = read["p"].as_table().unwrap();
        prop_assert_eq!(inner.len(), 3);
        let expected = format!("x{value}y");
        prop_assert_eq!(inner["a"].as_str(), Some(&*expected));
        prop_assert_eq!(inner["b"][0].as_str(), Some(&*key));
    }

    #[test]
    fn in_a_plain_place_a_value_is_what_it_is(value in anything()) {
        let values = Values::new().with(Variable::Model, &*value);
        let text = Template::parse("--model={{ MODEL }}", Place::Plain).unwrap().expand(&values).unwrap();
        prop_assert_eq!(text, format!("--model={value}"));
    }

    #[test]
    fn no_text_is_fatal(text in any::<String>(), part in "[{} A-Z_]{0,20}") {
        for place in [Place::Plain, Place::Json, Place::Toml, Place::Shell] {
            let _ = Template::parse(&format!("{text}{part}"), place);
        }
    }
}

proptest! {
    // Each case starts a shell.
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn in_a_shell_a_value_stays_one_word(value in anything(), key in anything()) {
        let values = Values::new().with(Variable::Model, &*value).with(Variable::Key, &*key);
        let text = Template::parse("printf '%s\\n' {{ MODEL }} x{{ KEY }}", Place::Shell).unwrap();
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(text.expand(&values).unwrap())
            .env_clear()
            .output()
            .unwrap();
        prop_assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{value}\nx{key}\n"));
    }
}

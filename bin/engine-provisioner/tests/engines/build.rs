//! Engines built from source: a small one, whose source package lies in the cache already.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engine_provisioner::recipe::{Recipe, Variant};
use engine_provisioner::{EngineError, EngineProgram, Origin, Progress, Settings, Step, get_engine};
use flate2::Compression;
use flate2::write::GzEncoder;
use model_store::Digest;

const CMAKE: &str =
    "cmake_minimum_required(VERSION 3.13)\nproject(tiny CXX)\nadd_executable(tiny-engine a.cpp b.cpp)\n";
const RIGHT: &str = "#include <cstdio>\nint b();\nint main() { std::printf(\"version: %d\\n\", b()); }\n";
const WRONG: &str = "this is not C++;\n";

struct Setup {
    directory: tempfile::TempDir,
    settings: Settings,
    recipe: Recipe,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Setup {
    /// Puts a source package whose program has `main` into the cache.
    fn new(main: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let sources = cache.join("sources");
        std::fs::create_dir_all(&sources).unwrap();
        let archive = sources.join("tiny_engine-1.tar.gz");
        write_package(&archive, main);
        let sha256 = Digest::of_file(&archive).unwrap();
        let text = format!(
            r#"
                name = "tiny"
                about = "a few lines"
                dialects = []
                [probe]
                health = "/"
                models = "/"
                [start]
                args = []
                ready_timeout_s = 1
                stop_timeout_s = 1
                [source]
                program = "tiny-engine"
                version = "1"
                version_args = []
                version_prefix = "version:"
                [source.python_package]
                name = "tiny-engine"
                version = "1"
                sha256 = "{sha256}"
                build_backend = "none.build"
                directory = "vendor/tiny"
                [source.build]
                flags = ["-DCMAKE_BUILD_TYPE=Release"]
                target = "tiny-engine"
                program = "tiny-engine"
                [source.build.variants]
                cpu = []
            "#
        );
        let recipe = Recipe::parse("tiny.toml", &text).unwrap();
        let settings = Settings {
            cache_dir: Some(cache),
            ..Settings::default()
        };
        Self {
            directory,
            settings,
            recipe,
            steps: Arc::default(),
        }
    }

    async fn get(&self, variant: Option<Variant>) -> Result<EngineProgram, EngineError> {
        let steps = Arc::clone(&self.steps);
        let progress = Progress::new(move |step| steps.lock().unwrap().push(step));
        get_engine(&self.recipe, &self.settings, None, variant, &progress).await
    }

    fn cache(&self, path: &str) -> PathBuf {
        self.directory.path().join("cache").join(path)
    }
}

fn write_package(path: &Path, main: &str) {
    let file = std::fs::File::create(path).unwrap();
    let mut builder = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    for (name, content) in [
        ("CMakeLists.txt", CMAKE),
        ("a.cpp", main),
        ("b.cpp", "int b() { return 42; }\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder
            .append_data(
                &mut header,
                format!("tiny_engine-1/vendor/tiny/{name}"),
                content.as_bytes(),
            )
            .unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap();
}

#[tokio::test]
async fn an_engine_is_built_once_and_the_build_cleared_away() {
    let setup = Setup::new(RIGHT);
    let (first, second) = tokio::join!(setup.get(None), setup.get(Some(Variant::Cpu)));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.version, "42");
    assert_eq!(first.program, setup.cache("engines/tiny/1-cpu/tiny-engine"));
    assert_eq!(second.program, first.program);
    let origins = [first.origin, second.origin];
    assert!(
        origins.contains(&Origin::Built) && origins.contains(&Origin::Cache),
        "{origins:?}"
    );
    assert!(!setup.cache("build/tiny-1-cpu").exists());
    let steps = setup.steps.lock().unwrap();
    let last = steps
        .iter()
        .rfind(|step| step.what == "building tiny (cpu)")
        .unwrap();
    assert_eq!((last.done, last.total), (3, Some(3)));
}

#[tokio::test]
async fn a_build_that_fails_says_its_last_words_and_where_the_log_is() {
    let setup = Setup::new(WRONG);
    let error = setup.get(None).await.unwrap_err().to_string();
    let log = setup.cache("logs/tiny-1-cpu.log");
    assert!(
        error.contains("ended with exit code 1; its last words:"),
        "{error}"
    );
    assert!(
        error.contains("a.cpp") && error.ends_with(&format!("All of them are in {}", log.display())),
        "{error}"
    );
    assert!(std::fs::read_to_string(log).unwrap().contains("a.cpp"));
    assert!(!setup.cache("engines/tiny/1-cpu").exists());
    let error = setup.get(Some(Variant::Cuda)).await.unwrap_err().to_string();
    assert_eq!(error, "its recipe has no build for cuda; it has cpu");
}

//! Logins: entered once, sealed, there again in the owner's next sandbox, and nobody else's.

use pool_managerd::LoginEvents;
use pool_registry_types::{AgentLogin, LoginEvent, LoginFailure, LoginInput, LoginKind, LoginStatus};

use super::place::Place;
use crate::bench::{LONG, holder};

impl Place {
    async fn begin_login(&self, owner: &str, kind: Option<LoginKind>) -> LoginEvents {
        let login = AgentLogin {
            login_id: format!("login-of-{owner}"),
            owner: owner.to_owned(),
            kind,
        };
        let pool = self.agent.parse().unwrap();
        self.door().begin_login(&pool, &holder(), login).await.unwrap()
    }

    async fn enter(&self, login_of: &str, owner: &str, text: &str) -> Result<(), pool_managerd::DoorError> {
        let input = LoginInput {
            owner: owner.to_owned(),
            text: text.to_owned(),
        };
        let pool = self.agent.parse().unwrap();
        self.door()
            .login_input(&pool, &format!("login-of-{login_of}"), input)
            .await
    }

    pub(crate) async fn log_in(
        &self,
        owner: &str,
        kind: Option<LoginKind>,
        text: &str,
    ) -> (Vec<LoginEvent>, Option<LoginFailure>) {
        let mut events = self.begin_login(owner, kind).await;
        let mut told = Vec::new();
        let reading = async {
            while let Some(event) = events.next().await {
                match &event {
                    LoginEvent::Input { .. } => self.enter(owner, owner, text).await.unwrap(),
                    LoginEvent::Ended { failure } => return failure.clone(),
                    _ => {}
                }
                told.push(event);
            }
            panic!("no end: {told:?}")
        };
        let failure = tokio::time::timeout(LONG, reading).await.unwrap();
        (told, failure)
    }

    async fn login_status(&self, owner: &str) -> LoginStatus {
        let pool = self.agent.parse().unwrap();
        self.door().login_status(&pool, &holder(), owner).await.unwrap()
    }
}

#[tokio::test]
async fn a_key_is_entered_once_and_there_after_a_restart() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    assert!(!place.login_status("ann").await.is_logged_in);
    let pid = place.ask("ann", "pid").await;
    let (told, failure) = place.log_in("ann", None, "ann-s3cret").await;
    assert_ne!(
        place.ask("ann", "pid").await,
        pid,
        "it may have read its login at its start"
    );
    assert_eq!(failure, None);
    assert_eq!(
        told.first(),
        Some(&LoginEvent::Started {
            kind: LoginKind::ApiKey
        })
    );
    assert!(
        !format!("{told:?}").contains("ann-s3cret"),
        "the key is told: {told:?}"
    );
    assert_eq!(place.ask("ann", "who").await, "ann-s3cret");
    let place = place.restarted().await;
    assert_eq!(place.ask("ann", "who").await, "ann-s3cret");
    assert_eq!(place.ask("bob", "who").await, "nobody");
    let status = place.login_status("ann").await;
    assert!(status.is_logged_in && status.version.is_some(), "{status:?}");
    assert_eq!(status.kinds, [LoginKind::ApiKey, LoginKind::PasteCode]);
}

#[tokio::test]
async fn a_code_is_pasted_by_the_owner_only() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let mut events = place.begin_login("ann", Some(LoginKind::PasteCode)).await;
    loop {
        match events.next().await.unwrap() {
            LoginEvent::Open { url } => assert_eq!(url, "https://login.fake.example/device?x=1"),
            LoginEvent::Input { .. } => break,
            _ => {}
        }
    }
    assert!(place.enter("ann", "bob", "stolen").await.is_err());
    place.enter("ann", "ann", "a-code").await.unwrap();
    while let Some(event) = events.next().await {
        if let LoginEvent::Ended { failure } = event {
            assert_eq!(failure, None);
        }
    }
    assert_eq!(place.ask("ann", "who").await, "a-code");
    let (_, failure) = place.log_in("bob", Some(LoginKind::PasteCode), "wrong").await;
    assert_eq!(failure.unwrap().code, "UNAUTHENTICATED");
    place.bench.free("fake", 8).await;
}

#[tokio::test]
async fn a_removed_login_is_gone_from_sandbox_and_store() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let (_, failure) = place.log_in("ann", None, "ann-s3cret").await;
    assert_eq!(failure, None);
    let pool = place.agent.parse().unwrap();
    place.door().remove_login(&pool, "ann").await.unwrap();
    assert_eq!(place.ask("ann", "who").await, "nobody");
    let place = place.restarted().await;
    assert_eq!(place.ask("ann", "who").await, "nobody");
}

#[tokio::test]
async fn what_a_cli_changes_of_its_login_is_kept() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    assert_eq!(place.ask("ann", "login refreshed").await, "logged in");
    assert_eq!(place.ask("ann", "write a note").await, "written");
    let place = place.restarted().await;
    assert_eq!(place.ask("ann", "who").await, "refreshed");
    assert_eq!(place.ask("ann", "read").await, "a note");
    assert_eq!(place.ask("bob", "read").await, "nothing");
}

#[tokio::test]
async fn codex_keeps_an_api_key_over_a_restart() {
    let Some(place) = Place::real("codex").await else {
        return;
    };
    assert!(!place.login_status("ann").await.is_logged_in);
    let (told, failure) = place
        .log_in("ann", Some(LoginKind::ApiKey), "sk-canary-123456")
        .await;
    assert_eq!(failure, None, "{told:?}");
    assert!(!format!("{told:?}").contains("canary"), "{told:?}");
    let place = place.restarted().await;
    assert!(place.login_status("ann").await.is_logged_in);
    assert!(!place.login_status("bob").await.is_logged_in);
}

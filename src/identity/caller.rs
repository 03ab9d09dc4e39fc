//! Who makes a request, and what they may do.
//!
//! # Failure behavior
//!
//! What is not granted is refused: a scope that this version does not know grants nothing.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::{account, key::NewKey};
use crate::{
    clock::Time,
    id::{AccountId, KeyId},
};

/// The key id under which what the service key does is booked.
const SERVICE: &str = "service";

/// The key id under which what users do with tokens of others is booked.
const USER: &str = "user";

/// What a key may be confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum KeyScope {
    /// Everything, in every account.
    Admin,
    Cast,
    Read,
    Keys,
    Budgets,
    Billing,
}

impl KeyScope {
    pub const ALL: [KeyScope; 6] = [
        KeyScope::Admin,
        KeyScope::Cast,
        KeyScope::Read,
        KeyScope::Keys,
        KeyScope::Budgets,
        KeyScope::Billing,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            KeyScope::Admin => "admin",
            KeyScope::Cast => "cast",
            KeyScope::Read => "read",
            KeyScope::Keys => "keys",
            KeyScope::Budgets => "budgets",
            KeyScope::Billing => "billing",
        }
    }

    pub fn parse(text: &str) -> Option<KeyScope> {
        KeyScope::ALL.into_iter().find(|scope| scope.as_str() == text)
    }

    /// All there are, for a sentence.
    pub fn all_named() -> String {
        listed(&KeyScope::ALL, "and")
    }
}

impl fmt::Display for KeyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TryFrom<String> for KeyScope {
    type Error = String;

    fn try_from(text: String) -> Result<KeyScope, String> {
        KeyScope::parse(&text)
            .ok_or_else(|| format!("unknown scope `{text}`, there are {}", KeyScope::all_named()))
    }
}

/// "`a`, `b` and `c`".
fn listed(scopes: &[KeyScope], conjunction: &str) -> String {
    let named: Vec<String> = scopes.iter().map(|scope| format!("`{scope}`")).collect();
    match named.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [others @ .., last] => format!("{} {conjunction} {last}", others.join(", ")),
    }
}

/// What a caller may not do, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("Only an admin may do that.")]
    NotAdmin,
    #[error("This key may not do that; it would need the scope {}.", listed(.0, "or"))]
    Lacks(&'static [KeyScope]),
    #[error("A key can't hand out the scope `{0}` without having it.")]
    CannotGrant(KeyScope),
    #[error("A key that has scopes can't hand out a key without any, which may do everything.")]
    CannotGrantAll,
    #[error(
        "A key whose `rate_limit_per_minute` is {0} can't hand out one with a higher rate, or with none."
    )]
    CannotGrantRate(u32),
    #[error("A key that expires at {0} can't hand out one that expires later, or never.")]
    CannotGrantEnd(Time),
    #[error("A key can't revoke another one that may do more than itself.")]
    CannotRevoke,
}

/// Who makes a request: a key, a user with another's token, or the service key, and the account it
/// acts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The account that is read, changed, or pays.
    pub account: AccountId,
    pub key: KeyId,
    /// Whether `account` is; the cast pipeline asks, since all but spending goes on.
    pub suspended: bool,
    scopes: Option<Vec<KeyScope>>,
    admin: bool,
    /// The key's own rate; `None`: its plan's.
    pub rate_limit_per_minute: Option<u32>,
    /// The rate of the plan of the key's own account; `None`: the server's.
    pub plan_rate_per_minute: Option<u32>,
    /// When the key ends; a secret of it may end earlier. `None`: never.
    expires_at: Option<Time>,
    /// The service key, which has no rate.
    pub service: bool,
    user: Option<String>,
}

impl Caller {
    /// The holder of a key. Without scopes it may do everything in its account, and is no admin.
    pub fn of_key(
        account: AccountId,
        key: KeyId,
        suspended: bool,
        scopes: Option<Vec<KeyScope>>,
        rate_limit_per_minute: Option<u32>,
        expires_at: Option<Time>,
    ) -> Caller {
        let admin = scopes.as_ref().is_some_and(|scopes| scopes.contains(&KeyScope::Admin));
        Caller {
            account,
            key,
            suspended,
            scopes,
            admin,
            rate_limit_per_minute,
            plan_rate_per_minute: None,
            expires_at,
            service: false,
            user: None,
        }
    }

    /// A user whom another service signed in: it may do everything in its own account, and is no admin.
    pub fn of_user(user: &str, account: AccountId, suspended: bool) -> Caller {
        Caller {
            user: Some(user.to_owned()),
            ..Caller::of_key(account, USER.into(), suspended, None, None, None)
        }
    }

    /// The same caller, in an account whose plan has this rate.
    pub fn with_plan_rate(self, plan_rate_per_minute: Option<u32>) -> Caller {
        Caller { plan_rate_per_minute, ..self }
    }

    /// The service, if `presented` is one of its `tokens`: an admin, at home in the root account.
    ///
    /// Every token is compared to its end, and as a hash: neither how far a guess is right nor how
    /// long a token is shows in the time this takes.
    pub fn of_service(presented: &str, tokens: &[SecretString]) -> Option<Caller> {
        let given = Sha256::digest(presented);
        let known = tokens.iter().fold(Choice::from(0), |known, token| {
            known | Sha256::digest(token.expose_secret()).as_slice().ct_eq(given.as_slice())
        });
        let scopes = Some(vec![KeyScope::Admin]);
        bool::from(known).then(|| Caller {
            service: true,
            ..Caller::of_key(account::root(), SERVICE.into(), false, scopes, None, None)
        })
    }

    /// The same caller, acting for `account`. Whether it may is decided before.
    pub fn acting_for(self, account: AccountId, suspended: bool) -> Caller {
        Caller { account, suspended, ..self }
    }

    /// What others call the user whose token it is; `None`: the caller has a key of ours.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub fn is_admin(&self) -> bool {
        self.admin
    }

    pub fn may(&self, scope: KeyScope) -> bool {
        match &self.scopes {
            None => scope != KeyScope::Admin,
            Some(scopes) => self.admin || scopes.contains(&scope),
        }
    }

    /// Errors: the caller may not do what `scope` names.
    pub fn require(&self, scope: KeyScope) -> Result<(), Denied> {
        match scope {
            KeyScope::Admin => self.require_any(&[KeyScope::Admin]),
            KeyScope::Cast => self.require_any(&[KeyScope::Cast]),
            KeyScope::Read => self.require_any(&[KeyScope::Read]),
            KeyScope::Keys => self.require_any(&[KeyScope::Keys]),
            KeyScope::Budgets => self.require_any(&[KeyScope::Budgets]),
            KeyScope::Billing => self.require_any(&[KeyScope::Billing]),
        }
    }

    /// Errors: the caller has none of `scopes`.
    pub fn require_any(&self, scopes: &'static [KeyScope]) -> Result<(), Denied> {
        match scopes {
            _ if scopes.iter().any(|scope| self.may(*scope)) => Ok(()),
            [KeyScope::Admin] => Err(Denied::NotAdmin),
            _ => Err(Denied::Lacks(scopes)),
        }
    }

    /// Whether the caller may hand out a key, or a key's new secret, with these scopes: what it may
    /// not do itself it can't let another do.
    pub fn require_grant(&self, scopes: Option<&[KeyScope]>) -> Result<(), Denied> {
        match scopes {
            None if self.admin || self.scopes.is_none() => Ok(()),
            None => Err(Denied::CannotGrantAll),
            Some(scopes) => match scopes.iter().find(|scope| !self.may(**scope)) {
                None => Ok(()),
                Some(scope) => Err(Denied::CannotGrant(*scope)),
            },
        }
    }

    /// Whether the caller may hand out a key, or a key's new secret, with this rate and this end:
    /// not more than its own, or who is limited would only have to make another key.
    pub fn require_limits(&self, rate: Option<u32>, expires_at: Option<Time>) -> Result<(), Denied> {
        match (self.rate_limit_per_minute, self.expires_at) {
            _ if self.admin => Ok(()),
            (Some(own), _) if rate.is_none_or(|rate| rate > own) => Err(Denied::CannotGrantRate(own)),
            (_, Some(own)) if expires_at.is_none_or(|end| end > own) => Err(Denied::CannotGrantEnd(own)),
            _ => Ok(()),
        }
    }

    /// The new key, with the caller's own rate and end where it states none.
    ///
    /// Errors: the caller may not hand it out.
    pub fn grant(&self, new: NewKey) -> Result<NewKey, Denied> {
        let new = match self.admin {
            true => new,
            false => NewKey {
                rate_limit_per_minute: new.rate_limit_per_minute.or(self.rate_limit_per_minute),
                expires_at: new.expires_at.or(self.expires_at),
                ..new
            },
        };
        self.require_grant(new.scopes.as_deref())?;
        self.require_limits(new.rate_limit_per_minute, new.expires_at)?;
        Ok(new)
    }

    /// Whether the caller may revoke the key `id`, which has these scopes: itself, or what it could
    /// have handed out. Otherwise who may make a few keys could lock all others out.
    pub fn require_revoke(&self, id: &KeyId, scopes: Option<&[KeyScope]>) -> Result<(), Denied> {
        match *id == self.key || self.require_grant(scopes).is_ok() {
            true => Ok(()),
            false => Err(Denied::CannotRevoke),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scopes: Option<&[KeyScope]>) -> Caller {
        Caller::of_key("acct_1".into(), "key_1".into(), false, scopes.map(<[KeyScope]>::to_vec), None, None)
    }

    fn limited(rate: Option<u32>, expires_at: Option<Time>) -> Caller {
        Caller { rate_limit_per_minute: rate, expires_at, ..caller(None) }
    }

    fn granted(
        caller: &Caller,
        rate: Option<u32>,
        end: Option<Time>,
    ) -> Result<(Option<u32>, Option<Time>), Denied> {
        let new = NewKey { rate_limit_per_minute: rate, expires_at: end, ..NewKey::default() };
        caller.grant(new).map(|new| (new.rate_limit_per_minute, new.expires_at))
    }

    #[test]
    fn without_scopes_everything_in_the_own_account_and_no_more() {
        let owner = caller(None);
        for scope in KeyScope::ALL {
            assert_eq!(owner.may(scope), scope != KeyScope::Admin, "{scope}");
        }
        assert!(!owner.is_admin());
        assert_eq!(owner.require(KeyScope::Admin), Err(Denied::NotAdmin));
        assert_eq!(owner.require_grant(None), Ok(()));
        assert_eq!(owner.require_grant(Some(&[KeyScope::Admin])), Err(Denied::CannotGrant(KeyScope::Admin)));
    }

    #[test]
    fn with_scopes_what_they_name_and_an_admin_all() {
        let caster = caller(Some(&[KeyScope::Cast, KeyScope::Keys]));
        assert!(caster.may(KeyScope::Cast) && !caster.may(KeyScope::Read) && !caster.is_admin());
        assert_eq!(caster.require_any(&[KeyScope::Read, KeyScope::Keys]), Ok(()));
        assert_eq!(caster.require_grant(Some(&[KeyScope::Cast])), Ok(()));
        assert!(caster.require_grant(Some(&[KeyScope::Cast, KeyScope::Read])).is_err());
        assert_eq!(caster.require_grant(None), Err(Denied::CannotGrantAll));
        assert!(KeyScope::ALL.into_iter().all(|scope| !caller(Some(&[])).may(scope)));

        let admin = caller(Some(&[KeyScope::Admin]));
        assert!(admin.is_admin() && KeyScope::ALL.into_iter().all(|scope| admin.require(scope).is_ok()));
        assert_eq!(admin.require_grant(None), Ok(()));
    }

    #[test]
    fn a_user_may_do_everything_in_the_own_account_and_is_no_admin() {
        let user = Caller::of_user("ann", "acct_1".into(), false);
        assert!(user.user() == Some("ann") && !user.is_admin() && !user.service);
        assert!(KeyScope::ALL.into_iter().all(|scope| user.may(scope) == (scope != KeyScope::Admin)));
        assert_eq!(caller(None).user(), None);
    }

    #[test]
    fn a_limited_key_hands_on_its_limits_or_less() {
        let (rate, end) = (Some(30), Some(Time(500)));
        let both = limited(rate, end);
        assert_eq!(granted(&both, None, None), Ok((rate, end)));
        assert_eq!(granted(&both, rate, end), Ok((rate, end)));
        assert_eq!(granted(&both, Some(29), Some(Time(499))), Ok((Some(29), Some(Time(499)))));
        assert_eq!(granted(&both, Some(31), None), Err(Denied::CannotGrantRate(30)));
        assert_eq!(granted(&both, None, Some(Time(501))), Err(Denied::CannotGrantEnd(Time(500))));
        assert_eq!(granted(&limited(rate, None), None, Some(Time(9_999))), Ok((rate, Some(Time(9_999)))));
        assert_eq!(granted(&limited(None, end), Some(1_000), None), Ok((Some(1_000), end)));
        // A key that is there already, whose new secret is asked for, inherits nothing.
        assert_eq!(both.require_limits(None, end), Err(Denied::CannotGrantRate(30)));
        assert_eq!(both.require_limits(rate, None), Err(Denied::CannotGrantEnd(Time(500))));
        assert_eq!(both.require_limits(rate, end), Ok(()));
    }

    #[test]
    fn an_unlimited_key_and_an_admin_hand_out_any_rate_and_end() {
        let limited_admin = Caller { admin: true, ..limited(Some(30), Some(Time(500))) };
        for maker in [caller(None), caller(Some(&[KeyScope::Admin])), limited_admin] {
            assert_eq!(granted(&maker, None, None), Ok((None, None)));
            let more = (Some(1_000_000_000), Some(Time(9_999)));
            assert_eq!(granted(&maker, more.0, more.1), Ok(more));
            assert_eq!(maker.require_limits(None, None), Ok(()));
        }
    }

    #[test]
    fn what_a_key_could_not_hand_out_it_can_not_revoke() {
        let (own, other) = (KeyId::from("key_1"), KeyId::from("key_2"));
        let (keys, all) = (&[KeyScope::Keys] as &[_], &KeyScope::ALL as &[_]);
        let scoped = caller(Some(keys));
        assert_eq!(scoped.require_revoke(&other, Some(keys)), Ok(()));
        for wider in [None, Some(all), Some(&[KeyScope::Keys, KeyScope::Cast] as &[_])] {
            assert_eq!(scoped.require_revoke(&other, wider), Err(Denied::CannotRevoke));
            assert_eq!(scoped.require_revoke(&own, wider), Ok(()));
        }
        assert_eq!(caller(None).require_revoke(&other, None), Ok(()));
        assert_eq!(caller(None).require_revoke(&other, Some(all)), Err(Denied::CannotRevoke));
        for scopes in [None, Some(all)] {
            assert_eq!(caller(Some(&[KeyScope::Admin])).require_revoke(&other, scopes), Ok(()));
        }
    }

    #[test]
    fn a_refusal_names_what_is_missing() {
        let refused = caller(Some(&[])).require_any(&[KeyScope::Read, KeyScope::Keys]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "This key may not do that; it would need the scope `read` or `keys`."
        );
        let unknown = serde_json::from_str::<KeyScope>("\"root\"").unwrap_err().to_string();
        assert!(unknown.contains("`root`") && unknown.contains("`budgets` and `billing`"), "{unknown}");
        assert!(serde_json::from_str::<KeyScope>(r#"{"admin":null}"#).is_err());
    }

    #[test]
    fn every_scope_is_read_as_it_is_written() {
        for scope in KeyScope::ALL {
            assert_eq!(serde_json::to_string(&scope).unwrap(), format!("\"{scope}\""));
            assert_eq!(KeyScope::parse(scope.as_str()), Some(scope));
        }
    }

    #[test]
    fn any_of_the_service_tokens_is_an_admin_and_nothing_else_is() {
        let tokens =
            ["an-older-service-token".to_owned().into(), "the-newer-service-token".to_owned().into()];
        for token in ["an-older-service-token", "the-newer-service-token"] {
            let service = Caller::of_service(token, &tokens).unwrap();
            assert!(service.service && service.is_admin());
            assert_eq!((service.account.as_str(), service.key.as_str()), ("acct_root", "service"));
        }
        for wrong in ["", "an-older-service-toke", "an-older-service-token ", "the-newer-service-tokeN"] {
            assert_eq!(Caller::of_service(wrong, &tokens), None, "{wrong:?}");
        }
        assert_eq!(Caller::of_service("", &[]), None);
    }
}

"""Shopping carts, kept in Redis for a day."""

from __future__ import annotations

from shop import resp, service

log = service.logger("cart-service")
redis = resp.Redis("cache.shop.internal")


def handle(method: str, path: str, body: bytes) -> service.Answer:
    """GET /carts/ID, PUT /carts/ID."""
    key = f"cart:{path.split('/')[2]}"
    try:
        if method == "PUT":
            redis.command("SET", key, body.decode(), "EX", "86400")
            return 201, {}
        return (200, {}) if redis.command("GET", key) else (404, {})
    except resp.RedisError as error:
        log.error("%s not saved: redis: %s", key, error)
        return 503, {"error": "cart not saved"}


if __name__ == "__main__":
    service.serve("10.20.0.20", 8080, handle, log)

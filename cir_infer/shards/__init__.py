"""A gallery in several parts: each an ordinary gallery, together answered as one, exactly."""

from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.searcher import ShardedSearcher
from cir_infer.shards.shard import Found, LocalShard, Shard

__all__ = ["Found", "LocalShard", "Shard", "ShardedGallery", "ShardedSearcher"]

"""The small environments that come with Millrace: `basics` is a pool source."""

from envpool.env import ToolEnv
from envpool.envs.bubble_sort import BubbleSort
from envpool.envs.count_even import CountEven
from envpool.envs.find_max import FindMax
from envpool.envs.guess_number import GuessNumber
from envpool.envs.price_total import PriceTotal
from envpool.envs.running_gcd import RunningGcd
from envpool.envs.sum_list import SumList
from envpool.envs.walk_list import WalkList

basics: dict[str, type[ToolEnv]] = {
    "sum_list": SumList,
    "find_max": FindMax,
    "count_even": CountEven,
    "guess_number": GuessNumber,
    "walk_list": WalkList,
    "running_gcd": RunningGcd,
    "bubble_sort": BubbleSort,
    "price_total": PriceTotal,
}

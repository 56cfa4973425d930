"""Spoken commands, clean and messy, and ordinary sentences that are none."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.needs import missing

from voiced.plugins.intents.matcher import Matcher
from voiced.plugins.intents.sentences import load_sentences

ENGLISH: list[tuple[str, str, dict[str, Any]]] = [
    ("Turn on the A/C.", "ClimateOn", {}),
    ("switch the air-conditioning on", "ClimateOn", {}),
    ("Please activate the climate control", "ClimateOn", {}),
    ("turn off the A.C. please", "ClimateOff", {}),
    ("could you switch off the air conditioner", "ClimateOff", {}),
    ("AC off", "ClimateOff", {}),
    ("Set the temperature to twenty-two degrees.", "SetTemperature", {"temperature": 22}),
    ("set temperature at 21.5°C", "SetTemperature", {"temperature": 21.5, "unit": "celsius"}),
    ("make it seventy two degrees fahrenheit", "SetTemperature",
     {"temperature": 72, "unit": "fahrenheit"}),
    ("temperature nineteen and a half degrees", "SetTemperature", {"temperature": 19.5}),
    ("turn up the heat", "RaiseTemperature", {}),
    ("raise the temperature by two degrees", "RaiseTemperature", {"delta": 2}),
    ("I'm freezing!", "RaiseTemperature", {}),
    ("lower the temperature by 3 degrees", "LowerTemperature", {"delta": 3}),
    ("It's too hot in here.", "LowerTemperature", {}),
    ("make it a bit cooler", "LowerTemperature", {}),
    ("set the fan speed to three", "SetFanSpeed", {"level": 3}),
    ("set the fan to maximum", "SetFanSpeed", {"level": "max"}),
    ("fan speed level 5", "SetFanSpeed", {"level": 5}),
    ("increase the fan speed", "RaiseFanSpeed", {}),
    ("turn the fan up", "RaiseFanSpeed", {}),
    ("more air please", "RaiseFanSpeed", {}),
    ("reduce the fan speed", "LowerFanSpeed", {}),
    ("turn the blower down", "LowerFanSpeed", {}),
    ("less air", "LowerFanSpeed", {}),
    ("turn on the seat heating", "SeatHeatingOn", {}),
    ("switch on the driver's seat heater", "SeatHeatingOn", {"seat": "driver"}),
    ("warm up the passenger seat", "SeatHeatingOn", {"seat": "passenger"}),
    ("turn off the seat heating", "SeatHeatingOff", {}),
    ("turn the heated seats off", "SeatHeatingOff", {}),
    ("stop heating the rear seats", "SeatHeatingOff", {"seat": "rear"}),
    ("turn on the rear defroster", "DefrostOn", {"glass": "rear"}),
    ("defrost the windshield", "DefrostOn", {"glass": "front"}),
    ("switch the defogger on", "DefrostOn", {}),
    ("turn off the defroster", "DefrostOff", {}),
    ("turn the rear defrost off", "DefrostOff", {"glass": "rear"}),
    ("stop defrosting", "DefrostOff", {}),
    ("recirculate the air", "RecirculationOn", {}),
    ("turn on air recirculation", "RecirculationOn", {}),
    ("switch recirculation on", "RecirculationOn", {}),
    ("let in fresh air", "RecirculationOff", {}),
    ("turn off recirculation", "RecirculationOff", {}),
    ("switch the air recirculation off", "RecirculationOff", {}),
    ("Open the window.", "OpenWindow", {}),
    ("roll down the rear left window", "OpenWindow", {"window": "rear_left"}),
    ("open all the windows to fifty percent", "OpenWindow", {"window": "all", "percent": 50}),
    ("close the windows", "CloseWindow", {}),
    ("roll up the passenger window", "CloseWindow", {"window": "passenger"}),
    ("put my window up", "CloseWindow", {}),
    ("close both windows", "CloseWindow", {"window": "all"}),
    ("open the sunroof 30%", "OpenSunroof", {"percent": 30}),
    ("open the moonroof", "OpenSunroof", {}),
    ("slide the sun roof open", "OpenSunroof", {}),
    ("close the sunroof", "CloseSunroof", {}),
    ("shut the roof", "CloseSunroof", {}),
    ("slide the sunroof shut", "CloseSunroof", {}),
    ("open the trunk", "OpenTrunk", {}),
    ("pop the boot", "OpenTrunk", {}),
    ("can you open up the tailgate", "OpenTrunk", {}),
    ("close the trunk", "CloseTrunk", {}),
    ("shut the boot please", "CloseTrunk", {}),
    ("close my tailgate", "CloseTrunk", {}),
    ("lock the doors", "LockDoors", {}),
    ("lock the car", "LockDoors", {}),
    ("lock all the car doors", "LockDoors", {}),
    ("unlock the doors", "UnlockDoors", {}),
    ("unlock my car", "UnlockDoors", {}),
    ("open the car doors", "UnlockDoors", {}),
    ("take me home", "NavigateHome", {}),
    ("navigate home", "NavigateHome", {}),
    ("get directions to home", "NavigateHome", {}),
    ("drive me to work", "NavigateWork", {}),
    ("navigate to the office", "NavigateWork", {}),
    ("take me to my office please", "NavigateWork", {}),
    ("Navigate to Times Square, New York.", "NavigateTo", {"place": "times square new york"}),
    ("how do I get to the airport", "NavigateTo", {"place": "the airport"}),
    ("set the destination to 10 Downing Street", "NavigateTo", {"place": "10 downing street"}),
    ("cancel navigation", "CancelNavigation", {}),
    ("stop the route guidance", "CancelNavigation", {}),
    ("turn off the navigation", "CancelNavigation", {}),
    ("find the nearest gas station", "FindNearest", {"category": "fuel"}),
    ("where's the nearest charging station?", "FindNearest", {"category": "charging"}),
    ("is there a pharmacy nearby", "FindNearest", {"category": "pharmacy"}),
    ("play music", "MediaPlay", {}),
    ("resume playback", "MediaPlay", {}),
    ("play some music", "MediaPlay", {}),
    ("pause the music", "MediaPause", {}),
    ("stop the song", "MediaPause", {}),
    ("pause", "MediaPause", {}),
    ("Turn the radio off.", "MediaPause", {}),
    ("next song", "MediaNext", {}),
    ("skip this track", "MediaNext", {}),
    ("play the next one", "MediaNext", {}),
    ("previous track", "MediaPrevious", {}),
    ("go back to the last song", "MediaPrevious", {}),
    ("play that song again", "MediaPrevious", {}),
    ("turn up the volume", "VolumeUp", {}),
    ("volume up", "VolumeUp", {}),
    ("make it louder", "VolumeUp", {}),
    ("turn the music down", "VolumeDown", {}),
    ("quieter please", "VolumeDown", {}),
    ("decrease the volume by 2", "VolumeDown", {"delta": 2}),
    ("set the volume to forty percent", "SetVolume", {"level": 40}),
    ("volume 7", "SetVolume", {"level": 7}),
    ("turn the volume up to thirty five", "SetVolume", {"level": 35}),
    ("mute", "Mute", {}),
    ("mute the sound", "Mute", {}),
    ("turn the sound off", "Mute", {}),
    ("unmute", "Unmute", {}),
    ("turn the sound back on", "Unmute", {}),
    ("unmute the radio", "Unmute", {}),
    ("play Bohemian Rhapsody by Queen", "PlayMusic",
     {"title": "bohemian rhapsody", "artist": "queen"}),
    ("I'd like to listen to Imagine by John Lennon", "PlayMusic",
     {"title": "imagine", "artist": "john lennon"}),
    ("play something by Adele", "PlayMusic", {"artist": "adele"}),
    ("play the Beatles", "PlayMusic", {"title": "the beatles"}),
    ("turn on the radio", "PlayRadio", {}),
    ("tune to eighty-seven point five", "PlayRadio", {"frequency": 87.5}),
    ("switch the radio to FM 101.1", "PlayRadio", {"frequency": 101.1}),
    ("tune in to one oh three point seven megahertz", "PlayRadio", {"frequency": 103.7}),
    ("Call mom.", "Call", {"contact": "mom"}),
    ("give John Smith a ring", "Call", {"contact": "john smith"}),
    ("make a phone call to Doctor Brown", "Call", {"contact": "doctor brown"}),
    ("answer the call", "AnswerCall", {}),
    ("pick up the phone", "AnswerCall", {}),
    ("accept this call", "AnswerCall", {}),
    ("reject the call", "RejectCall", {}),
    ("don't answer it", "RejectCall", {}),
    ("decline the incoming call", "RejectCall", {}),
    ("hang up", "HangUp", {}),
    ("end the call", "HangUp", {}),
    ("hang up the phone", "HangUp", {}),
    ("redial", "Redial", {}),
    ("redial the last number", "Redial", {}),
    ("call the last number again", "Redial", {}),
]  # fmt: skip

MANDARIN: list[tuple[str, str, dict[str, Any]]] = [
    ("打开空调。", "ClimateOn", {}),
    ("請 幫 我 打開 空調", "ClimateOn", {}),
    ("麻烦你把空调开一下", "ClimateOn", {}),
    ("关闭空调", "ClimateOff", {}),
    ("把空调关掉吧", "ClimateOff", {}),
    ("空調關了", "ClimateOff", {}),
    ("把温度调到二十二度", "SetTemperature", {"temperature": 22}),
    ("溫度調到２２．５度", "SetTemperature", {"temperature": 22.5}),
    ("空调调到 24 ℃", "SetTemperature", {"temperature": 24}),
    ("设置为十八度半", "SetTemperature", {"temperature": 18.5}),
    ("温度调高一点", "RaiseTemperature", {}),
    ("把温度升高两度", "RaiseTemperature", {"delta": 2}),
    ("有点冷", "RaiseTemperature", {}),
    ("温度调低一点", "LowerTemperature", {}),
    ("帮我把温度降低三度", "LowerTemperature", {"delta": 3}),
    ("太热了", "LowerTemperature", {}),
    ("风速调到三档", "SetFanSpeed", {"level": 3}),
    ("把风量调到最大", "SetFanSpeed", {"level": "max"}),
    ("风速5级", "SetFanSpeed", {"level": 5}),
    ("风速调大一点", "RaiseFanSpeed", {}),
    ("加大风量", "RaiseFanSpeed", {}),
    ("把风调大一些", "RaiseFanSpeed", {}),
    ("风速调小一点", "LowerFanSpeed", {}),
    ("减小风量", "LowerFanSpeed", {}),
    ("把空调的风调小", "LowerFanSpeed", {}),
    ("打开座椅加热", "SeatHeatingOn", {}),
    ("把副驾座椅加热打开", "SeatHeatingOn", {"seat": "passenger"}),
    ("主驾座椅加热开启", "SeatHeatingOn", {"seat": "driver"}),
    ("关闭座椅加热", "SeatHeatingOff", {}),
    ("把后排座椅加热关掉", "SeatHeatingOff", {"seat": "rear"}),
    ("座椅加热关了", "SeatHeatingOff", {}),
    ("打开后挡风玻璃除霜", "DefrostOn", {"glass": "rear"}),
    ("打开除雾", "DefrostOn", {}),
    ("前挡除雾", "DefrostOn", {"glass": "front"}),
    ("关闭除霜", "DefrostOff", {}),
    ("把除雾关掉", "DefrostOff", {}),
    ("后挡除霜关闭", "DefrostOff", {"glass": "rear"}),
    ("打开内循环", "RecirculationOn", {}),
    ("切换到内循环模式", "RecirculationOn", {}),
    ("把内循环打开", "RecirculationOn", {}),
    ("关闭内循环", "RecirculationOff", {}),
    ("切换到外循环", "RecirculationOff", {}),
    ("打开外循环", "RecirculationOff", {}),
    ("打开车窗", "OpenWindow", {}),
    ("把主驾车窗打开一下", "OpenWindow", {"window": "driver"}),
    ("打开所有车窗到50%", "OpenWindow", {"window": "all", "percent": 50}),
    ("關閉車窗", "CloseWindow", {}),
    ("把左后车窗关上", "CloseWindow", {"window": "rear_left"}),
    ("升起副驾车窗", "CloseWindow", {"window": "passenger"}),
    ("打开天窗", "OpenSunroof", {}),
    ("把天窗打开", "OpenSunroof", {}),
    ("天窗开到百分之三十", "OpenSunroof", {"percent": 30}),
    ("关闭天窗", "CloseSunroof", {}),
    ("把天窗关上", "CloseSunroof", {}),
    ("天窗关一下", "CloseSunroof", {}),
    ("打开后备箱", "OpenTrunk", {}),
    ("把尾门打开", "OpenTrunk", {}),
    ("后备箱打开", "OpenTrunk", {}),
    ("关闭后备箱", "CloseTrunk", {}),
    ("把后备箱关上", "CloseTrunk", {}),
    ("尾門關閉", "CloseTrunk", {}),
    ("锁车", "LockDoors", {}),
    ("把车门锁上", "LockDoors", {}),
    ("锁上所有车门", "LockDoors", {}),
    ("解锁车门", "UnlockDoors", {}),
    ("打开车门", "UnlockDoors", {}),
    ("把车门解锁", "UnlockDoors", {}),
    ("导航回家", "NavigateHome", {}),
    ("我要回家", "NavigateHome", {}),
    ("带我回家吧", "NavigateHome", {}),
    ("导航去公司", "NavigateWork", {}),
    ("送我去上班", "NavigateWork", {}),
    ("导航到公司", "NavigateWork", {}),
    ("导航到天安门广场", "NavigateTo", {"place": "天安门广场"}),
    ("我要去浦东机场", "NavigateTo", {"place": "浦东机场"}),
    ("去人民公园怎么走", "NavigateTo", {"place": "人民公园"}),
    ("取消导航", "CancelNavigation", {}),
    ("把导航关掉", "CancelNavigation", {}),
    ("退出當前導航", "CancelNavigation", {}),
    ("找一下附近的加油站", "FindNearest", {"category": "fuel"}),
    ("最近的充电桩在哪里", "FindNearest", {"category": "charging"}),
    ("附近有没有停车场", "FindNearest", {"category": "parking"}),
    ("播放音乐", "MediaPlay", {}),
    ("继续播放", "MediaPlay", {}),
    ("放首歌", "MediaPlay", {}),
    ("播放一下音乐", "MediaPlay", {}),
    ("暂停播放", "MediaPause", {}),
    ("暂停", "MediaPause", {}),
    ("关掉收音机", "MediaPause", {}),
    ("把音乐关掉", "MediaPause", {}),
    ("下一首", "MediaNext", {}),
    ("播放下一首歌", "MediaNext", {}),
    ("切歌", "MediaNext", {}),
    ("上一首", "MediaPrevious", {}),
    ("播放上一曲", "MediaPrevious", {}),
    ("回到上一首", "MediaPrevious", {}),
    ("音量调大一点", "VolumeUp", {}),
    ("大声一点", "VolumeUp", {}),
    ("把声音调大", "VolumeUp", {}),
    ("音量调小", "VolumeDown", {}),
    ("小声点", "VolumeDown", {}),
    ("把音量降低两格", "VolumeDown", {"delta": 2}),
    ("音量调到百分之五十", "SetVolume", {"level": 50}),
    ("把音量设为30", "SetVolume", {"level": 30}),
    ("音量十五", "SetVolume", {"level": 15}),
    ("静音", "Mute", {}),
    ("打开静音模式", "Mute", {}),
    ("把声音关掉", "Mute", {}),
    ("取消静音", "Unmute", {}),
    ("恢复声音", "Unmute", {}),
    ("把声音打开", "Unmute", {}),
    ("播放周杰伦的青花瓷", "PlayMusic", {"artist": "周杰伦", "title": "青花瓷"}),
    ("想听歌曲去大理", "PlayMusic", {"title": "去大理"}),
    ("我想听邓丽君的歌", "PlayMusic", {"artist": "邓丽君"}),
    ("打开收音机", "PlayRadio", {}),
    ("调频一零三点七", "PlayRadio", {"frequency": 103.7}),
    ("收听FM 87.5", "PlayRadio", {"frequency": 87.5}),
    ("打电话给张三", "Call", {"contact": "张三"}),
    ("给妈妈打个电话", "Call", {"contact": "妈妈"}),
    ("呼叫王经理", "Call", {"contact": "王经理"}),
    ("接听电话", "AnswerCall", {}),
    ("接一下电话", "AnswerCall", {}),
    ("把电话接起来", "AnswerCall", {}),
    ("拒接电话", "RejectCall", {}),
    ("不要接这个电话", "RejectCall", {}),
    ("拒绝来电", "RejectCall", {}),
    ("挂断电话", "HangUp", {}),
    ("把电话挂了", "HangUp", {}),
    ("結束通話", "HangUp", {}),
    ("重拨", "Redial", {}),
    ("再打一次", "Redial", {}),
    ("拨打上一个号码", "Redial", {}),
]

ORDINARY_ENGLISH = """
Good morning everybody. | How are you doing today? | What time is it? | What's the date today?
I think we should leave early tomorrow. | The weather is lovely this afternoon.
She told me that the window was open all night. | He closed the door and walked away.
My brother bought a new car last week. | The radio in the kitchen is broken.
Play is important for children. | They played football in the park. | Don't play with your food.
It's hard to play chess against her. | Play it by ear. | Play fair, boys. | Call it a day.
I'll call you later. | Call me when you get there. | She called off the wedding.
He gave me a call yesterday. | Call me Ishmael. | The call was very long.
Turn left at the next light. | Turn on the living room lamp. | Turn around and look at me.
Can you turn off the lights in the bedroom? | The volume of the box is two liters.
We drove home in silence. | There's no place like home. | Home is where the heart is.
I went to work by bike today. | She works at the office downtown.
Take me to your leader, he said. | It drives me crazy.
The temperature dropped to minus five last night. | It was twenty degrees outside.
The air in the city is terrible. | Set the table for dinner, please. | Set your mind at ease.
Stop it. | Stop talking. | Start over. | Let's start the meeting. | Go ahead. | Keep going.
What's next? | The next train leaves at nine. | I lost the previous version.
Skip breakfast if you can. | The singer was mute with fear. | Open your book at page twenty.
Open your eyes. | Close your mouth. | Close to the river there is a mill. | Lock and load.
He locked himself in. | The doors of the church were open. | Pop goes the weasel.
Boot the computer. | I'm happy. | I'm tired. | I am hungry. | It's raining. | It's late.
It's too expensive. | Hot coffee is better than cold tea. | He was cold and wet.
Warm regards from Berlin. | Find out what happened. | Find a way to do it. | Where is my phone?
Where are the kids? | The nearest star is four light years away. | Is there any milk left?
I need a break. | I need you. | Answer my question. | The answer is forty two.
Pick up the kids at three. | Pick a card. | Reject the proposal. | Ignore him.
The meeting ended at five. | Hang in there. | Hang on a second. | How do I get to know her?
How do we get rid of this? | Show me what you've got. | Show me the money.
Directions were unclear. | Guide me through the process. | Bring me a cup of tea.
Raise your hand if you know. | Lower your expectations. | Increase your savings.
Reduce the price. | We listen to the teacher. | Listen to me. | Listen to your heart.
Put on your coat. | Put on a smile. | Continue with the lesson. | Resume the negotiations.
Music is the food of love. | That's my favorite song. | Louder than bombs. | The quiet American.
Fan mail arrives every day. | Clear the table. | The seat next to me is empty. | Take a seat.
Heat the oven to two hundred degrees. | The boat sank. | Ring the bell. | Ring the changes.
Phone calls are expensive. | Dial M for murder. | Give it a try. | Give me a break.
Give peace a chance. | Switch to plan B. | Tune the guitar. | Change your mind. | Make it happen.
Make it quick. | Make yourself at home. | Cancel the order. | End of story.
"""

ORDINARY_MANDARIN = """
大家早上好 | 你今天怎么样 | 现在几点了 | 今天天气不错 | 我觉得我们明天应该早点出发
她说窗户开了一整夜 | 他关上门走了 | 我哥哥上周买了一辆新车 | 厨房里的收音机坏了
孩子们在公园里踢足球 | 我一会儿给你打电话 | 他昨天给我打了电话 | 这个电话打了很久 | 前面路口左转
打开客厅的灯 | 把卧室的灯关掉 | 这个箱子的体积是两升 | 我们开车回了家 | 没有什么地方比得上家
我今天骑车去上班了 | 她在市中心的公司工作 | 昨晚气温降到零下五度 | 外面只有二十度左右
城市里的空气很差 | 请摆好餐具准备吃饭 | 别说话 | 我们开始开会吧 | 继续努力 | 下一步怎么办
下一班火车九点开 | 我把上一个版本弄丢了 | 翻到第二十页 | 睁开眼睛 | 闭上嘴 | 河边有一座磨坊
教堂的门开着 | 我很高兴 | 我累了 | 我饿了 | 下雨了 | 太晚了 | 太贵了 | 热咖啡比冷茶好 | 他又冷又湿
找到解决办法 | 我的手机在哪 | 孩子们在哪里 | 还有牛奶吗 | 我需要休息 | 回答我的问题 | 答案是四十二
三点去接孩子 | 拒绝这个提议 | 别理他 | 会议五点结束 | 坚持一下 | 你是怎么认识她的
给我看看你的本事 | 这条路线不清楚 | 给我来杯茶 | 知道的请举手 | 降低你的期望 | 听老师讲课 | 听我说
穿上外套 | 继续上课 | 音乐是爱情的食粮 | 这是我最喜欢的歌 | 清理桌子 | 我旁边的座位是空的 | 请坐
把烤箱加热到两百度 | 船沉了 | 电话费很贵 | 试试看 | 改变主意 | 取消订单 | 故事结束了
播放量超过一百万 | 打开课本 | 打开心扉 | 去年冬天很冷 | 去过北京的人都说好 | 我要去上课了
我想去看电影 | 我们去吃饭 | 到时候再说 | 给他一个机会 | 听说他要结婚了 | 放下手里的东西
联系实际学习理论 | 呼叫中心的员工很辛苦 | 空调市场竞争激烈 | 车门旁边站着一个人
导航系统的价格下降了 | 静音室的建设费用很高 | 解锁新技能 | 换一个角度看问题 | 停车费太贵了
附近的居民都来了 | 大声喧哗是不礼貌的 | 电台主持人很有名 | 音量的大小由物理决定
风速达到每秒三十米 | 他的声音很好听 | 座椅的设计很舒服
"""

COMMANDS_IN_THE_RECORDINGS = {"play the beatles", "想听歌曲去大理", "想听歌曲小鸡小鸡",
                              "想听歌曲我们好像在哪见过", "想听歌曲新贵妃醉酒"}  # fmt: skip
DATA = Path(
    os.environ.get("VOICED_TEST_DATA", Path(__file__).parents[2].parent / "shared/data/dev")
)


@cache
def matcher() -> Matcher:
    return Matcher(load_sentences())


def sentences(block: str) -> list[str]:
    return [each.strip() for each in block.replace("\n", "|").split("|") if each.strip()]


@pytest.mark.parametrize(("text", "name", "slots"), ENGLISH)
def test_an_english_command_is_understood(text: str, name: str, slots: dict[str, Any]) -> None:
    found = matcher().match(text, "en")
    assert found is not None
    assert (found.name, found.slots) == (name, slots)


@pytest.mark.parametrize(("text", "name", "slots"), MANDARIN)
def test_a_mandarin_command_is_understood(text: str, name: str, slots: dict[str, Any]) -> None:
    found = matcher().match(text, "zh")
    assert found is not None
    assert (found.name, found.slots) == (name, slots)


@pytest.mark.parametrize(("language", "table"), [("en", ENGLISH), ("zh", MANDARIN)])
def test_every_intent_has_three_phrasings_that_are_tested(
    language: str, table: list[tuple[str, str, dict[str, Any]]]
) -> None:
    names = [name for _, name, _ in table]
    known = load_sentences()[language].intents.intents
    assert len(known) >= 25
    assert {name: names.count(name) for name in known if names.count(name) < 3} == {}


def test_both_languages_know_the_same_intents() -> None:
    sets = load_sentences()
    assert set(sets["en"].intents.intents) == set(sets["zh"].intents.intents)


@pytest.mark.parametrize(
    ("language", "block"), [("en", ORDINARY_ENGLISH), ("zh", ORDINARY_MANDARIN)]
)
def test_ordinary_sentences_are_no_commands(language: str, block: str) -> None:
    texts = sentences(block)
    assert len(texts) >= 100
    taken = {t: m for t in texts if (m := matcher().match(t, language)) is not None}
    assert len(taken) <= len(texts) // 100, taken


@pytest.mark.speech
@pytest.mark.parametrize("language", ["en", "zh"])
def test_transcripts_of_read_speech_are_no_commands(language: str) -> None:
    manifests = sorted(DATA.glob("*.jsonl"))
    if not manifests:
        missing("SPEECH", f"no speech manifests in {DATA.name}; set VOICED_TEST_DATA")
    rows = [json.loads(line) for each in manifests for line in each.read_text("utf-8").splitlines()]
    texts = {row["text"] for row in rows if row.get("lang") == language and row.get("text")}
    texts -= COMMANDS_IN_THE_RECORDINGS
    taken = {t: m for t in texts if (m := matcher().match(t, language)) is not None}
    assert len(taken) <= len(texts) // 100, taken


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "don't open the window"),
        ("en", "is the window open"),
        ("en", "never call him again"),
        ("zh", "不要打开车窗"),
        ("zh", "车窗打开了吗"),
        ("zh", "谁打开了空调"),
        ("zh", "打开"),
        ("zh", "声音小"),
        ("zh", "打开空调吗？"),
        ("zh", "空調打開嗎"),
        ("zh", "打开车门吗"),
        ("zh", "可以开门吗"),
        ("zh", "打电话给张三吗"),
        ("zh", "播放音乐吗"),
        ("zh", "导航到人民公园吗"),
    ],
)
def test_a_negation_a_question_or_half_a_command_does_nothing(language: str, text: str) -> None:
    assert matcher().match(text, language) is None


@pytest.mark.parametrize(
    ("language", "text"),
    [
        *(("zh", text) for text in ("开门", "请开门", "解锁", "开锁", "打开门", "把门打开")),
        *(("en", text) for text in ("open the door", "open my door", "unlock the door")),
        ("en", "doors unlocked?"),
    ],
)
def test_doors_are_unlocked_only_when_the_car_is_named_or_they_are_all_meant(
    language: str, text: str
) -> None:
    found = matcher().match(text, language)
    assert found is None or found.name != "UnlockDoors"


@pytest.mark.parametrize(
    "text",
    ["联系我们", "联系电话", "打他的电话", "给她打个电话", "打电话给你", "呼叫我们", "联系方式"],
)
def test_a_mandarin_pronoun_or_thing_is_nobody_to_call(text: str) -> None:
    assert matcher().match(text, "zh") is None


@pytest.mark.parametrize("text", ["能帮我打开空调吗？", "你可以打开空调吗", "打开空调好吗"])
def test_a_mandarin_request_in_the_form_of_a_question_is_a_command(text: str) -> None:
    found = matcher().match(text, "zh")
    assert found is not None
    assert (found.name, found.confidence) == ("ClimateOn", 0.95)


def test_confidence_falls_with_the_distance_from_the_template() -> None:
    def confidence(text: str) -> float:
        found = matcher().match(text, "en")
        assert found is not None, text
        assert found.name == "CloseWindow"
        return found.confidence

    as_written = confidence("close the window")
    polite = confidence("could you please close the window")
    hesitant = confidence("close um the window")
    misheard = confidence("cloze the window")
    assert as_written == 1.0
    assert 1.0 > polite > hesitant > misheard > 0.5


def test_a_sentence_with_open_text_is_less_certain_than_a_closed_one() -> None:
    closed, open_text = matcher().match("redial", "en"), matcher().match("call anna", "en")
    assert closed is not None
    assert open_text is not None
    assert closed.confidence > open_text.confidence


def test_a_language_without_sentences_matches_nothing() -> None:
    assert matcher().match("ouvre la fenêtre", "fr") is None


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(["en", "zh"]))
def test_any_text_is_answered_without_an_error(text: str, language: str) -> None:
    found = matcher().match(text, language)
    assert found is None or 0 < found.confidence <= 1
